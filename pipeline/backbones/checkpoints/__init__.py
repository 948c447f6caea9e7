"""Files of weights: reading their names and shapes, whether they fit a model, and loading them into it."""
