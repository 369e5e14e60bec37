"""vicort against transformers on a CPU."""
