"""The sparse latents of blocks of tokens: how they are found, and their products in torch and in Triton."""
