"""What the language graph is fed: prompts, rows and the choice of the next token."""
