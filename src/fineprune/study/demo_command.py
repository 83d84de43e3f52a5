"""The command `fineprune demo`: make the runs, pack the pruned model, and show it beside the dense one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fineprune.study.frontier.points import Point
    from fineprune.training.run.demo import DemoRow

SMALL = "small"
"""The folder of the compact model, in that of the demo."""

_ROUNDS = 3
_DENSE_INT8 = ("onnxruntime int8", "OpenVINO int8")  # the first is made sooner, and faster without VNNI
_SHOWN = ("torch", *_DENSE_INT8, "engine int8")


def demo(
    out: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("fineprune-demo"),
    steps: Annotated[
        int,
        typer.Option(
            min=10, help="Optimizer steps of the pruning; the dense run has three quarters of them."
        ),
    ] = 200,
) -> None:
    """Fine-tune, prune, pack and time an embedded model: no network, a few minutes."""
    from fineprune.checkpoint.packing import Packing
    from fineprune.study.report import leave_page
    from fineprune.training.run.convert import compact_folder
    from fineprune.training.run.demo import run_demo

    rows = run_demo(out, steps)
    pruned = rows[1]
    compact_folder(pruned.folder, out / SMALL, Packing("int8", "int8"))
    points = _measured(rows)
    _print_table(rows, points)
    print(sentence(pruned, points))
    print(
        "density counts the matrices of the layers; embeddings and the head are whole. One seed: a difference"
    )
    print("of less than 2 points is noise. The pruned model had the dense steps, then its own.")
    print(f"served from: {out / SMALL}, without torch; go on with:")
    print(f"  fineprune predict {out / SMALL} NAME --pair SENTENCE")
    print(f"  fineprune inspect {pruned.folder}")
    print(f"  fineprune frontier {out}   # the other runtimes, too")
    for row in rows:
        leave_page(row.folder)
    leave_page(out, print)


def _measured(rows: "list[DemoRow]") -> "list[Point]":
    """Time and score both models, one text after the other on one thread."""
    from fineprune.study.frontier.measuring import Options, measure
    from fineprune.study.frontier.points import points_of, tasks_in
    from fineprune.study.frontier.runtimes import missing
    from fineprune.study.grid import DENSE

    (task,) = tasks_in([row.folder for row in rows])
    rival = [name for name in _DENSE_INT8 if not missing(name)][:1]  # OpenVINO's takes a minute more
    dense, pruned = ("torch", *rival), (*rival, "engine int8")
    options = Options(
        rounds=_ROUNDS,
        wanted=lambda run, name: name in (dense if run.cell.method == DENSE else pruned),
        memory=False,
    )
    return points_of(task, measure(task, options, lambda line: print(f"measuring {line}", flush=True)))


def shown(points: "list[Point]") -> "list[Point]":
    """Return the points of the table: dense in torch, both models in int8, the pruned one in the engine."""
    only_dense = {"torch": True, "engine int8": False}
    return [
        point
        for name in _SHOWN
        for point in sorted(points, key=lambda point: not point.model.dense)
        if point.runtime == name and point.model.dense == only_dense.get(name, point.model.dense)
    ]


def sentence(pruned: "DemoRow", points: "list[Point]") -> str:
    """Return what the demo showed, in a sentence."""
    dense = {point.runtime: point for point in points if point.model.dense}
    small = next((point for point in points if point.runtime == "engine int8"), None)
    if small is None:
        return "The engine does not run here, so there is no speed to show."
    torch = dense["torch"]
    rivals = [dense[name] for name in _DENSE_INT8 if name in dense]
    beside = ""
    if rivals:
        best = min(rivals, key=lambda point: point.milliseconds)
        beside = f" and {best.milliseconds / small.milliseconds:.1f} times as fast as in {best.runtime}"
    return (
        f"With {pruned.density:.0%} of the weights of its layers, the model keeps "
        f"{small.score / torch.score:.1%} of the dense accuracy, takes {small.megabytes:.0f} MB instead of "
        f"{torch.megabytes:.0f}, and answers {torch.milliseconds / small.milliseconds:.1f} times as fast as "
        f"the dense model in torch{beside}, on one thread here."
    )


def _print_table(rows: "list[DemoRow]", points: "list[Point]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="does this sentence describe the function of this name?")
    for column in ("model", "density", "in", "accuracy", "of dense", "MB", "ms a text"):
        table.add_column(column, justify="left" if column in ("model", "in") else "right", no_wrap=True)
    chosen = shown(points)
    for point in chosen:
        row = rows[0 if point.model.dense else 1]
        numbers = (f"{point.score:.1f}%", f"{point.score / chosen[0].score:.1%}", f"{point.megabytes:.1f}")
        table.add_row(row.name, f"{row.density:.0%}", point.runtime, *numbers, f"{point.milliseconds:.2f}")
    Console().print(table)
