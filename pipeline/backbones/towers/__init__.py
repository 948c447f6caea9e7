"""Image towers and class embeddings, of which the kinds in `pipeline.backbones.models` make backbones."""
