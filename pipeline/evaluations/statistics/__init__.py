"""Counting, merging and tables for the evaluation `statistics`, and the rankings that masking uses."""
