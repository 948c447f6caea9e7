"""The kinds of backbones: one module per kind."""
