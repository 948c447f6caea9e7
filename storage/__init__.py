"""Where bytes live: keys, artifacts, activations, tables, checkpoints. Imports neither torch nor Prefect."""
