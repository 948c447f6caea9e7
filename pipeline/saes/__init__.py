"""Trained SAEs: their weights, sparse latents, quality, and the file formats of other tools."""
