"""Measure how long a model takes with fewer heads, and with fewer neurons, for `fineprune bench --table`.

Every layer of a copy is cut to the same number of units, which is timed in turns with the dense model: a
slower minute of the machine slows both. The difference, over the layers, is that of one attention or
feed-forward. Times depend on the shapes alone, in every runtime here: cut weights are the first ones.
"""

import copy
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fineprune._messages import one_line
from fineprune.checkpoint.loading import open_model
from fineprune.errors import FinepruneError
from fineprune.inference.bench.measure import Left, example, heard, scratch_folder, torch_threads
from fineprune.inference.bench.peers import PEERS, Job, missing
from fineprune.inference.bench.timing import compare, interleave, processor, silent, versions
from fineprune.pruning.anatomy import Attention, FeedForward
from fineprune.pruning.latency import LatencyTable, Shape, shape_of
from fineprune.pruning.layout import layout_of
from fineprune.pruning.ordinary import Edits
from fineprune.pruning.resizing import resize
from fineprune.pruning.targets import find_targets

RUNTIMES = (
    "torch",
    "engine float32",
    "engine bfloat16",
    "engine int8",
    "onnxruntime",
    "onnxruntime int8",
    "OpenVINO",
    "OpenVINO bfloat16",
    "OpenVINO int8",
)
"""Peers of `fineprune bench` that a table may be of."""

_RATIO, _WIDTHS = 0.9, 43  # neurons at F·0.9^i, i = 0 … 42
_DENSE, _CUT = "dense", "cut"


class Tables(NamedTuple):
    """The tables that were measured, by runtime, and what was not."""

    tables: list[LatencyTable]
    skipped: list[Left]


def measure_tables(
    folder: str | Path,
    runtimes: Sequence[str] = (),
    batch: int = 1,
    length: int = 128,
    threads: int | None = None,
    rounds: int = 11,
    round_to: int = 1,
    say: Callable[[str], None] = silent,
) -> Tables:
    """Time the model of a folder at each number of heads, and at neurons of 0.9, 0.81, … of all.

    Args:
        folder: A run or model folder. Its weights do not matter.
        runtimes: Of `RUNTIMES`; all that are installed if there are none.
        batch: Texts at once.
        length: Tokens of a text.
        threads: Threads of each runtime; None: as many as torch uses.
        rounds: How often each size is timed, in turns with the dense model.
        round_to: The numbers of neurons are rounded to multiples of this.
        say: Is called with a line about each step.

    Raises:
        FinepruneError: For numbers below 1, an unknown runtime, and a model that is no encoder of texts or
            whose layers differ.
    """
    given = {"batch": batch, "length": length, "threads": threads, "rounds": rounds, "round_to": round_to}
    for what, value in given.items():
        if value is not None and value < 1:
            raise FinepruneError(f"{what} is {value}, expected a whole number of 1 or more")
    for name in runtimes:
        if name not in RUNTIMES:
            raise FinepruneError(f"runtime {name!r}: allowed are {', '.join(RUNTIMES)}")
    threads = threads or torch.get_num_threads()
    found, skipped = [], []
    with torch_threads(threads), scratch_folder() as scratch:
        model = open_model(folder).model.float().eval()
        shape = shape_of(model)
        job = Job(_without_zeros(model), example(model, batch, length), threads, scratch)
        for name in runtimes or RUNTIMES:
            why = missing(PEERS[name])
            if why is None:
                try:
                    found.append(_measured(name, job, shape, rounds, round_to, say))
                except Exception as error:  # anything a peer raises: peers are not under test
                    why = one_line(error)
            if why is not None:
                skipped.append(Left(name, why))
    return Tables(found, skipped)


def share_of(dense: nn.Module, smaller: nn.Module, table: LatencyTable, rounds: int = 11) -> float:
    """Return the share of the dense model's time that a smaller one takes in the runtime of a table.

    Args:
        dense: The model before heads and neurons were removed. Its weights do not matter.
        smaller: The model without them.
        table: The runtime, the threads and the size of the input.
        rounds: How often both are timed.

    Raises:
        FinepruneError: This is another machine than the table's, or the runtime is missing or fails.
    """
    table.check_machine(processor(), table.threads)
    peer = PEERS[table.runtime]
    if why := missing(peer):
        raise FinepruneError(why)
    with torch_threads(table.threads), scratch_folder() as scratch, heard():
        runs = {}
        for name, model in ((_DENSE, _without_zeros(_on_cpu(dense))), (_CUT, _on_cpu(smaller))):
            inputs = example(model, table.batch, table.length)
            try:
                runs[name] = peer.build(Job(model, inputs, table.threads, scratch / name))
            except Exception as error:  # anything a peer raises
                raise FinepruneError(one_line(error)) from error
        timing = compare(interleave(runs, rounds), _DENSE)
    return 1 / timing[_CUT].ratio


def widths(neurons: int, round_to: int) -> list[int]:
    """Return the numbers of neurons to time, from all of them down; 1 is the last, or one multiple."""
    rounded = (round(neurons * _RATIO**power / round_to) * round_to for power in range(1, _WIDTHS))
    least = min(round_to, neurons)
    return list(dict.fromkeys([neurons, *(width for width in rounded if least < width < neurons), least]))


def _measured(
    name: str, job: Job, shape: Shape, rounds: int, round_to: int, say: Callable[[str], None]
) -> LatencyTable:
    """Measure the table of one runtime."""
    with heard():
        dense = PEERS[name].build(job._replace(scratch=job.scratch / f"{name} dense"))
    dense_ms: list[float] = []

    def ratio(part: str, units: int) -> float:
        say(f"{name}: {part}, {units:,} units a layer")
        scratch = job.scratch / "cut"
        with heard():
            run = PEERS[name].build(job._replace(model=_cut(job.model, part, units), scratch=scratch))
            timings = compare(interleave({_DENSE: dense, _CUT: run}, rounds), _DENSE)
        dense_ms.append(timings[_DENSE].milliseconds)
        shutil.rmtree(scratch, ignore_errors=True)  # exports of all sizes together would fill the disk
        return 1 / timings[_CUT].ratio

    heads = {}
    if _runs_with_one_head(job):
        heads = {units: ratio("attention", units) for units in range(1, shape.groups)}
    neurons = {units: ratio("feed_forward", units) for units in widths(shape.neurons, round_to)[1:]}
    usual = statistics.median(dense_ms)
    table = LatencyTable(
        runtime=name,
        processor=processor(),
        threads=job.threads,
        batch=len(job.inputs["input_ids"]),
        length=job.inputs["input_ids"].shape[1],
        round_to=round_to,
        shape=shape,
        dense_ms=usual,
        attention=_times(heads, shape.groups, usual / shape.layers),
        feed_forward=_times(neurons, shape.neurons, usual / shape.layers),
        versions=versions(),
    )
    table.check_values()  # a run would refuse it
    return table


def _times(shares: dict[int, float], full: int, ms: float) -> dict[int, float]:
    """Return milliseconds of one half, from what `shrink` leaves of an empty one: the least of its units.

    Args:
        shares: The whole model's share of the dense time, by units of each layer.
        full: All units.
        ms: Milliseconds of the dense model for each layer.
    """
    if not shares:
        return {}
    least = shares[min(shares)]
    every = {0: least} | dict(sorted(shares.items())) | {full: 1.0}
    return {units: max(0.0, (share - least) * ms) for units, share in every.items()}


def _cut(model: nn.Module, part: str, units: int) -> Any:
    """Return a copy of a model with that many units in one half of each layer; it shares other weights."""
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    smaller = copy.deepcopy(model, shared)
    halves = [half for block in layout_of(smaller) for half in (*block.attentions, *block.feed_forwards)]
    kinds = Attention if part == "attention" else FeedForward
    resize(smaller, {half.name: units for half in halves if isinstance(half, kinds)})
    Edits(smaller).apply(layout_of(smaller))
    return smaller


def _runs_with_one_head(job: Job) -> bool:
    """Return whether the model runs with fewer heads, which a bias of positions for all heads forbids."""
    try:
        with torch.inference_mode():
            _cut(job.model, "attention", 1)(**job.inputs)
    except Exception:  # code that was not made for these shapes may fail in any way
        return False
    return True


def _without_zeros(model: nn.Module) -> nn.Module:
    """Replace the zeros of a model, in place, by small numbers: the engine would leave them out."""
    with torch.no_grad():
        for module in find_targets(model).values():
            weight = module.get_parameter("weight")
            weight[weight == 0] = 1e-3
    return model


def _on_cpu(model: nn.Module) -> Any:
    """Return a copy of a model as it is served: on the CPU, in float32 and evaluation mode."""
    return copy.deepcopy(model).cpu().float().eval()
