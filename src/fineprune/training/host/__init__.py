"""Pruning inside transformers' Trainer or a subclass of it: the only overrides of the host."""
