"""How artifacts lie on the disk: keys, manifests, activations, tables. Imports neither torch nor Prefect."""
