"""Memory beyond the recent window, kept and read by layer and head; each kind has its modules."""
