"""Save a pruned model to disk, and load it."""
