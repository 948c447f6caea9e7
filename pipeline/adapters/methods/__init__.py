"""The kinds of adapters: one module per kind."""
