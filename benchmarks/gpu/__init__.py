"""Checks and measurements on an NVIDIA GPU."""
