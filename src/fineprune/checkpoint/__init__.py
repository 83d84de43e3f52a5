"""A pruned model on disk."""
