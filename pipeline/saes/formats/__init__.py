"""The file formats of other tools, one module each; `pipeline.saes.files` lists them."""
