"""The shapes world, which renders images with ground truth, and ShapesCLIP, a small CLIP trained on it."""
