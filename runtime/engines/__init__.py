"""Engine sets and the backends that run them."""
