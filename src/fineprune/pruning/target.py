"""One pruned weight of a prepared model."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fineprune.pruning.masked_weight import MaskedWeight


@dataclass
class Target:
    """A pruned weight: its dotted name, the module that holds it, and its mask."""

    name: str
    module: nn.Module
    masked: MaskedWeight

    @property
    def weight(self) -> nn.Parameter:
        """W itself, unmasked."""
        original: nn.Parameter = self.module.parametrizations.weight.original  # type: ignore[union-attr, assignment]
        return original

    @property
    def scores(self) -> Tensor:
        """The scores S, an entry a unit."""
        assert self.masked.scores is not None
        return self.masked.scores

    @property
    def gate(self) -> Any:
        """The gate of a method that has one."""
        assert self.masked.gate is not None
        return self.masked.gate
