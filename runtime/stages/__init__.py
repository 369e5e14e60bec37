"""The way of a chunk: preprocess, vision, token control and prefill, and the pipelines that run
them."""
