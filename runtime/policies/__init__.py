"""What a system decides, one decision per file: which tokens to drop, what a chunk and a question
may attend to, what to evict when memory is full, and when the model speaks."""
