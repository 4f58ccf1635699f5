"""Experiments: yaml files of arms and seeds, and what reads, runs and tabulates them."""
