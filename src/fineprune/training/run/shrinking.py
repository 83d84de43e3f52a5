"""Make the model of a finished run smaller where its structure left heads or neurons empty."""

import logging
from typing import Any

from torch import nn

from fineprune._messages import one_line
from fineprune.config import PruningConfig
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
        "heads": [[len(kept.units) - len(kept.zeros), kept.of] for kept in shrunk.heads],
        "neurons": [[len(kept.units) - len(kept.zeros), kept.of] for kept in shrunk.neurons],
        "parameters": list(shrunk.parameters),
        "flops": list(shrunk.flops),
        "difference": shrunk.difference,
        "refused": list(shrunk.refused),
        "ordinary": shrunk.ordinary,
    }
