"""Show what a pruned model of the demo is for: a small file, and answers in less time."""

from pathlib import Path
from typing import NamedTuple

import torch

from fineprune._transformers_output import quiet
from fineprune.checkpoint.loading import load, open_model
from fineprune.checkpoint.packing import Packing
from fineprune.inference.accelerate import accelerate
from fineprune.inference.bench.measure import example
from fineprune.inference.bench.timing import compare, interleave, processor
from fineprune.training.run.convert import compact_folder
from fineprune.training.run.evaluate import evaluate_run

SMALL = "small"
"""The folder of the small model, in that of the demo."""

_ROUNDS = 15


class Served(NamedTuple):
    """A compact int8 model beside the dense one, on one thread."""

    folder: Path
    bytes: int
    dense_bytes: int
    score: float
    """Its score, of the file's rounded weights in float32 arithmetic."""

    milliseconds: float
    """The time of one text in the sparse engine, in int8."""

    dense_milliseconds: float
    """The time of the dense model in torch, in float32, measured in turns with the other."""

    ratio: float
    """The median of the rounds' ratios."""

    length: int
    """Tokens of that text."""

    processor: str


def serve(run: Path, dense: Path, out: Path, length: int) -> Served:
    """Pack the model of a run in int8, score the file, and time it beside the dense model of another run.

    Args:
        run: the run of the pruned model.
        dense: the run of the dense model.
        out: where the small model goes; an older one is replaced.
        length: tokens of the text that is timed.
    """
    done = compact_folder(run, out, Packing("int8", "int8"))
    score = evaluate_run(run, model_folder=out)["accuracy"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with quiet():
            pruned, whole = load(out, packed=True), open_model(dense).model.float().eval()
        accelerate(pruned, dtype="int8", threads=1)
        inputs = example(whole, 1, length)
        with torch.inference_mode():
            models = {"dense": whole, "pruned": pruned}
            calls = {name: lambda model=model: model(**inputs) for name, model in models.items()}
            timings = compare(interleave(calls, _ROUNDS), "dense")
    finally:
        torch.set_num_threads(threads)
    fast, slow = timings["pruned"], timings["dense"]
    return Served(
        out,
        done.bytes,
        done.dense_bytes,
        score,
        fast.milliseconds,
        slow.milliseconds,
        fast.ratio,
        length,
        processor(),
    )


def lines(served: Served) -> list[str]:
    """Return what the demo prints about it."""
    share = served.bytes / served.dense_bytes
    return [
        f"packed in int8: {served.bytes / 1e6:.1f} MB, {share:.1%} of {served.dense_bytes / 1e6:.1f} MB "
        f"dense, accuracy {served.score:.1%}; in {served.folder}",
        f"one text of {served.length} tokens, one thread of {served.processor}: "
        f"{served.milliseconds:.2f} ms by the sparse engine in int8, {served.dense_milliseconds:.2f} ms by "
        f"torch with the dense model, {served.ratio:.1f} times the speed",
    ]
