"""Zero-shot classification, which evaluations measure, and the stage `classifier`."""
