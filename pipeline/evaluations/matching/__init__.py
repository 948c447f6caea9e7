"""Similarity of the latents of two SAEs, for the evaluation `matching`."""
