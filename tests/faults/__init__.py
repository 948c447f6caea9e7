"""The fault campaign: everything that can go wrong with a store is made to happen to a small experiment.

    uv run python -m tests.faults                 all of it; about an hour on two cores
    uv run python -m tests.faults damage --every 20

The tests in this folder run a part of it with all other tests.
"""
