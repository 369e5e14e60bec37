"""Configuration files that ship with vicort: models/*.yaml and systems/*.yaml."""
