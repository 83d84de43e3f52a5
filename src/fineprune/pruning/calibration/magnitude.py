"""The baseline: the largest weights stay, whatever the inputs are."""

from torch import Tensor

from fineprune.pruning.calibration.layer import Layer, best


def cut(layer: Layer, keep: int) -> Tensor:
    """Return the weight with its `keep` largest entries alone."""
    return layer.weight * best(layer.weight.abs(), keep)
