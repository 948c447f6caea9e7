"""Zero-shot classification under ablation, and tables, for the evaluation `reconstruction`."""
