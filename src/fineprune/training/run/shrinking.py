"""Make the model of a finished run smaller where its structure left heads or neurons empty."""

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn

from fineprune._messages import one_line
from fineprune.config import PruningConfig
from fineprune.pruning.origin import Kept
from fineprune.pruning.shrink import Shrunk, shrink
from fineprune.structure import shrinks

_log = logging.getLogger("fineprune")


def shrink_run(model: nn.Module, pruning: PruningConfig | None) -> dict[str, Any] | None:
    """Shrink a finalized model as its pruning asks, and return what results.json says about it.

    A model that cannot be shrunk stays as it is, with a warning: it is no reason to lose a run.
    """
    if pruning is None or not shrinks(pruning.structure):
        return None
    try:
        shrunk = shrink(model, round_to=pruning.round_to)
    except Exception as error:  # memory, or code that was not made for this: no reason to lose a run
        _log.warning("the model was not made smaller: %s", one_line(error))
        return None
    for reason in shrunk.refused:
        _log.warning("not removed: %s", reason)
    return _plain(shrunk)


def _plain(shrunk: Shrunk) -> dict[str, Any]:
    return {
        "heads": [[_alive([kept]), kept.of] for kept in shrunk.heads],
        "neurons": [[_alive([kept]), kept.of] for kept in shrunk.neurons],
        "layers": _layers(shrunk),
        "parameters": list(shrunk.parameters),
        "flops": list(shrunk.flops),
        "difference": shrunk.difference,
        "refused": list(shrunk.refused),
        "ordinary": shrunk.ordinary,
    }


def _layers(shrunk: Shrunk) -> list[dict[str, Any]]:
    """Return what remains of each layer, in the words of `fineprune inspect --json`.

    Heads have the numbers of the original model; those of a second attention in a layer continue them.
    """
    places = dict.fromkeys((kept.stack, kept.layer) for kept in (*shrunk.heads, *shrunk.neurons))
    layers = []
    for stack, layer in places:
        heads, neurons = (
            [kept for kept in halves if (kept.stack, kept.layer) == (stack, layer)]
            for halves in (shrunk.heads, shrunk.neurons)
        )
        living = []
        for index, kept in enumerate(heads):
            before = sum(one.of for one in heads[:index])
            living += [before + unit for unit in kept.units if unit not in kept.zeros]
        layers.append(
            {
                "stack": stack,
                "layer": layer,
                "heads": sum(kept.of for kept in heads),
                "heads_left": len(living),
                "living_heads": living,
                "neurons": sum(kept.of for kept in neurons),
                "neurons_left": _alive(neurons),
            }
        )
    return layers


def _alive(halves: Iterable[Kept]) -> int:
    return sum(len(kept.units) - len(kept.zeros) for kept in halves)
