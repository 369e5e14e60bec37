"""Memory beyond the recent window, kept and read by layer and head; a file a form of it."""
