"""Shrink the model of a finished run, and time it where the run was pruned to a share of the dense time."""

import copy
import logging
from typing import Any

from torch import nn

from fineprune._messages import one_line
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.inference.bench.latency import share_of
from fineprune.pruning.costs import costs
from fineprune.pruning.latency import LatencyTable
from fineprune.training.host.processes import this_process
from fineprune.training.run.shrinking import shrink_run

_GAP = 0.1  # of the plan, above which a measurement is worth a warning
_log = logging.getLogger("fineprune")


def shrink_timed(
    model: nn.Module, pruning: PruningConfig | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Shrink a finalized model in place; return what results.json says about that, and about its time.

    The time is None unless latency is the budget. One that cannot be measured here is a warning.
    """
    path = None if pruning is None else pruning.latency_table
    if path is None or pruning is None:
        return shrink_run(model, pruning), None
    table, dense = LatencyTable.load(path), copy.deepcopy(model)
    shrunk = shrink_run(model, pruning)
    planned, measured = table.planned_ms(model) / table.dense_ms, None
    if this_process().is_main_process:
        try:
            measured = share_of(dense, model, table)
        except Exception as error:  # a time is no reason to lose a run
            _log.warning("the time that was planned is not measured here: %s", one_line(error))
    if measured is not None and abs(measured - planned) > _GAP * planned:
        _log.warning(
            "the model takes %.1f%% of the dense time in %s, and %.1f%% were planned by %s: was this machine "
            "busy, now or then? On an idle one, measure the table again, with more --rounds",
            100 * measured,
            table.runtime,
            100 * planned,
            path,
        )
    about = {name: getattr(table, name) for name in ("runtime", "processor", "threads", "batch", "length")}
    shares = {"asked": pruning.density, "planned": planned, "measured": measured}
    return shrunk, about | {"dense_ms": table.dense_ms} | shares


def flops_of(model: nn.Module) -> dict[str, int] | None:
    """Return the floating-point operations of a text, as the model is stored and without those by zeros.

    None where they cannot be counted, as of a model without blocks.
    """
    try:
        found = costs(model)
    except FinepruneError:
        return None
    return {
        "length": found.length,
        "stored": 2 * found.multiply_adds,
        "nonzero": 2 * found.nonzero_multiply_adds,
    }
