"""The stage `train`: it trains SAEs on the shuffled stream of activations."""
