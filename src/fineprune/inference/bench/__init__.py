"""Latency and memory of a model in several runtimes, measured side by side."""
