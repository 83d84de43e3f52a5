"""Leave out layers at random while a model trains (LayerDrop, Fan et al. 2020, arXiv:1909.11556)."""

from typing import Any

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.pruning.targets import repeated_blocks
from fineprune.training.host.processes import this_process


def drop_layers(model: nn.Module, share: float) -> None:
    """Make each layer give what it reads, with probability `share`, drawn anew in each pass of a training.

    In evaluation mode all layers run. The draws come from torch's generator, whose state checkpoints hold.

    Raises:
        FinepruneError: There are several processes, which would leave out different layers.
    """
    if this_process().num_processes > 1:
        raise FinepruneError(
            f"training.layer_drop={share:g}: each process would leave out other layers; leave it out, or "
            "train in one process"
        )
    names = repeated_blocks(model)
    for name in names:
        if not any(name.startswith(f"{other}.") for other in names):  # layers, not experts inside of one
            model.get_submodule(name).register_forward_hook(_Drop(name, share), with_kwargs=True)


class _Drop:
    """A forward hook of one layer."""

    def __init__(self, name: str, share: float) -> None:
        self._name, self._share = name, share

    def __call__(self, layer: nn.Module, inputs: Any, named: Any, output: Any) -> Any:
        if not layer.training or float(torch.rand(())) >= self._share:
            return output
        read = inputs[0] if inputs else named.get("hidden_states")
        given = output[0] if isinstance(output, tuple) else output
        if not isinstance(read, Tensor) or not isinstance(given, Tensor) or read.shape != given.shape:
            raise FinepruneError(
                f"training.layer_drop={self._share:g}: {self._name} ({type(layer).__name__}) does not give a "
                "state of the shape that it reads; leave layer_drop out"
            )
        return (read, *output[1:]) if isinstance(output, tuple) else read
