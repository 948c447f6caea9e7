"""The published figures of the paper and of the adapters it builds on, and what a store has beside them.

`published.csv` has the figures, one per row, with their sources; `saes.csv` has the settings of the SAEs of Table 2.
"""
