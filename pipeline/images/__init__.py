"""Datasets, and the stage `index`, which makes an immutable table of the images of one."""
