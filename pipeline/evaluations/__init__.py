"""Evaluations of SAEs: statistics per latent, masking, reconstruction, frontier, and ViSAEBench's metrics."""
