"""An experiment: reading its YAML, making its nodes, planning them against a store, and running them."""
