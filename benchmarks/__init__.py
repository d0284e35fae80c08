"""Comparisons with the alternatives that a user has, measured in turn on one machine: `python -m benchmarks`."""
