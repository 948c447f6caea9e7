"""The explorer: what a store holds, as pages in a browser. It reads a store and never writes to it."""
