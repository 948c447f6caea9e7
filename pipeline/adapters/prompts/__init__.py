"""Learned prompts: tokens in the towers of a CLIP that are trained while the towers are frozen."""
