"""What a system may decide, one kind of decision a file: what to drop, what a new chunk may see,
what a question may see, and what to do when memory is full."""
