"""A video with questions and answers drawn on it."""
