"""The kinds of evaluations: one module per kind, with its config and its stage."""
