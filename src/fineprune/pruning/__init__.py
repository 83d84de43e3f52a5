"""The pruning methods; they need only torch."""
