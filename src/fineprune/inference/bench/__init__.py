"""Latency and memory of a model in several runtimes, measured side by side."""

BENCH = "bench.json"
"""The file that `fineprune bench` leaves in the folder of a run."""
