"""Reading a store: its artifacts, tables and best SAEs, for the command line and the Python API."""
