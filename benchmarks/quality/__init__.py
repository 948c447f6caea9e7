"""How well SAEs of every objective reconstruct, and how many latents live, beside SAELens' (`__main__` says more)."""
