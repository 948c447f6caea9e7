"""The cached activations: the stage `extract` writes them, and the stream shuffles them for training."""
