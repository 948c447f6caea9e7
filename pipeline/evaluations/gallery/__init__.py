"""Examples, histograms, companions and embeddings of every latent, for the evaluation `gallery`."""
