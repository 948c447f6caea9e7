"""Adapters: methods that adapt a CLIP to the classes of a dataset, and the backbones that they make."""
