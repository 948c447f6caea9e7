"""The sweep over k and the table of the evaluation `masking`."""
