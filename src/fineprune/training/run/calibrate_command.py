"""Run `fineprune calibrate` from the command line; slow imports happen inside the call."""

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer


def calibrate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or a model folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to write; DIR-calibrated.")
    ] = None,
    density: Annotated[float, typer.Option(help="Share of the weights of each matrix that remains.")] = 0.5,
    method: Annotated[
        str | None,
        typer.Option(
            help="magnitude, wanda, sparsegpt or alps, from fast to good; of --units kwon, k_prune, wanda, "
            "sparsegpt."
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Texts to read; 512.")] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="A text a line (a tab between two of a pair); the run's training data."),
    ] = None,
    units: Annotated[bool, typer.Option("--units", help="Cut heads and neurons, and remove them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Cut a trained model without labels and without training, in minutes."""
    from fineprune._messages import printable
    from fineprune.training.run.calibration import SAMPLES, Calibration, calibrate_folder

    place = out or folder.resolve().with_name(f"{folder.resolve().name}-calibrated")
    settings = Calibration(density, method, SAMPLES if samples is None else samples, texts, units)
    done = calibrate_folder(folder, place, settings)
    if as_json:
        print(json.dumps(done.to_dict()))
        return
    print(done.cut)
    if done.shrunk is not None:
        print(done.shrunk)
    if done.scores is not None and done.scores_before is not None and done.metric is not None:
        before, after = done.scores_before[done.metric], done.scores[done.metric]
        print(f"{done.metric} {before:.2%} before, {after:.2%} after")
    print(f"model: {done.folder}")
    if done.train_on is not None:
        print(printable(f"train it on: {done.train_on}"))
    print(printable(f"pack it: fineprune compact {quote(str(done.folder))} {quote(f'{done.folder}-small')}"))
