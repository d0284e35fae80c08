"""Comparisons with what a user would pick instead, side by side on one machine: `python -m benchmarks`."""
