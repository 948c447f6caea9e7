"""Configs, stages, nodes and progress bars, which the rest of `pipeline` is built on."""
