"""Training on transformers' Trainer, and the run of one recipe."""
