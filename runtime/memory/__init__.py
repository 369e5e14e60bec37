"""What a stream remembers: positions, pages on two tiers, and long-term memory by layer and
head."""
