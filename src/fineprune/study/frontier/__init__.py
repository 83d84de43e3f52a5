"""Show score against latency, size and memory of the runs of a study, each measured as it would be served."""
