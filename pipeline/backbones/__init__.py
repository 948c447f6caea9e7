"""CLIP models whose image tower is cut at the hook, and the stage `weights`, which digests their weights."""
