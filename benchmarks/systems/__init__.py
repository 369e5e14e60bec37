"""Every system of configs/systems side by side."""
