"""SAEs of other tools: one module per format; `formats.py` lists them."""
