"""Measure latency and memory of a model in several runtimes, side by side."""

BENCH = "bench.json"
"""The file that `fineprune bench` writes to the folder of a run."""
