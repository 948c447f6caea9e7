"""The kinds of SAEs that are trained here, one module each."""
