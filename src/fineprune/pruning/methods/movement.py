"""Movement pruning (Sanh, Wolf and Rush 2020)."""

from fineprune.pruning.methods.base import Method


class Movement(Method):
    """Movement pruning (MvP): Top_v of learned scores, straight-through."""
