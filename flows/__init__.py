"""Prefect flows and the command line. No other package imports Prefect."""
