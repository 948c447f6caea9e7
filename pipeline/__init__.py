"""Stages as plain functions over tensors and opened artifacts; runs without Prefect."""
