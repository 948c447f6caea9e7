"""Groups of latents, predictions and changes of activations of the evaluation `remapping`."""
