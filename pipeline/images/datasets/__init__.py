"""The kinds of datasets: one module per kind."""
