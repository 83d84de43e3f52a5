"""Measure the runs of a task in every runtime: the scores of its own answers, and times in turns."""

import contextlib
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fineprune._messages import one_line
from fineprune._transformers_output import quiet
from fineprune.errors import FinepruneError
from fineprune.inference.bench import resident_memory
from fineprune.inference.bench.measure import error_of, heard, scratch_folder, torch_threads
from fineprune.inference.bench.timing import compare, interleave, processor, silent
from fineprune.pruning.shrink import shrink
from fineprune.pruning.summary import summary
from fineprune.study.frontier.measurements import (
    Measurement,
    Place,
    content_of,
    keep,
    read_measurements,
    texts_of,
)
from fineprune.study.frontier.points import BASE, Task, task_of
from fineprune.study.frontier.runtimes import RUNTIMES, Answer, Inputs, Prepared, Subject, missing
from fineprune.study.frontier.texts import TIMED, Texts, answers_of, read_texts
from fineprune.study.grid import DENSE
from fineprune.study.study_folder import RunFolder
from fineprune.tasks.kinds import KINDS
from fineprune.tasks.opening import open_trained
from fineprune.training.run.data_files import load_recipe

_KINDS = tuple(kind.name for kind in KINDS)
_TOLERANCE = 1e-3  # of float32 runtimes, as in `fineprune bench`
_SMALLER = (
    0.9  # of the weights: a model that kept more of its matrices' size gains nothing in a dense runtime
)
_REFERENCE = "the reference"
ZEROS = "its zeros would be multiplied as any number: no faster than dense"
"""Why a runtime is not tried, which is no failure."""

UNTIMED = "its score is kept, its time is not measured yet: the session was stopped"
"""In the file while the runtimes of a run are scored, which takes minutes for large models."""


class Options(NamedTuple):
    """How to measure."""

    texts: int = 1000
    """Validation examples that are scored, at most; evenly spaced over the data."""
    threads: int = 1
    rounds: int = 5
    again: bool = False
    """Time what was measured before, too; scores do not depend on how busy the machine was, and stay."""
    wanted: Callable[[RunFolder, str], bool] | None = None
    """Which of `RUNTIMES` a run is measured in; None: in all."""
    memory: bool = True
    """Start a process for each model and runtime to see what it takes; seconds each."""


def measure(
    task: Task, options: Options, say: Callable[[str], None] = silent
) -> dict[Path, list[Measurement]]:
    """Measure what was not measured yet of a task's runs on this machine, and return all of it by run.

    Each run is a session of its own: its runtimes are timed in turns, with torch on a reference model in each
    round, so that sessions can be compared. What is measured is kept in the folder of each run at once.

    Raises:
        FinepruneError: a task that cannot be timed, data or a model that cannot be read.
    """
    _check(task, options)
    texts = texts_of(task_of(task.runs[0]), options.texts, TIMED)
    for note in dict.fromkeys(filter(None, (load_recipe(run.path)[1] for run in task.runs))):
        say(note)
    contents = {
        run.path: content_of(run.path / "model", run.recipe["training"].get("max_length") or 0)
        for run in task.runs
    }
    stored = {run.path: read_measurements(run.path) for run in task.runs}
    reference = _reference(task, contents, stored, processor())
    place = Place(processor(), options.threads, texts, contents[reference.path])
    found: dict[Path, list[Measurement]] = {}
    missed: dict[Path, list[str]] = {}
    for run in task.runs:
        known = {entry.key: entry for entry in stored[run.path]}
        names = [name for name in RUNTIMES if not missing(name)]
        if options.wanted is not None:
            names = [name for name in names if options.wanted(run, name)]
        keys = {name: _blank(name, place, contents[run.path]).key for name in names}
        timed = {key for key, entry in known.items() if entry.failed != UNTIMED and not options.again}
        found[run.path] = [known[key] for key in keys.values() if key in timed]
        missed[run.path] = [name for name, key in keys.items() if key not in timed]
    if any(missed.values()):
        with torch_threads(options.threads), _hushed():
            timing = _reference_run(reference, options)
            for run in task.runs:
                if missed[run.path]:
                    blanks = [_blank(name, place, contents[run.path]) for name in missed[run.path]]
                    old = [known for known in stored[run.path] if known.failed in (None, UNTIMED)]
                    new = _session(run, blanks, {entry.key: entry for entry in old}, timing, options, say)
                    _keep(run.path, new, say)
                    found[run.path] += new
    return found


def _check(task: Task, options: Options) -> None:
    for name in ("texts", "threads", "rounds"):
        value = getattr(options, name)
        if value < 1:
            raise FinepruneError(f"{name} is {value}, expected a whole number of 1 or more")
    for run in task.runs:
        section = run.recipe.get("task")
        kind = section.get("kind") if isinstance(section, dict) else None
        if kind not in _KINDS:
            raise FinepruneError(
                f"{run.path}: a task of the kind {kind!r} cannot be timed; frontier times {', '.join(_KINDS)}"
            )


def _reference(
    task: Task, contents: Mapping[Path, str], stored: Mapping[Path, list[Measurement]], machine: str
) -> RunFolder:
    """Return the run whose model is timed in each round: as before if it is there, or the first dense."""
    used = [
        entry.place.reference for all_ in stored.values() for entry in all_ if entry.place.machine == machine
    ]
    runs = sorted(task.runs, key=lambda run: (-used.count(contents[run.path]), run.cell.method != DENSE))
    return runs[0]


def _blank(name: str, place: Place, content: str) -> Measurement:
    """Return a measurement without numbers."""
    versions = {}
    for package in RUNTIMES[name].packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Measurement(name, place, content, versions)


def _reference_run(run: RunFolder, options: Options) -> tuple[Callable[[], Any], int]:
    """Return the function that runs the reference on the timed texts, and the number of their examples."""
    opened = open_trained(run.path, need_tokenizer=True)
    texts = read_texts(run.path, opened, options.texts)
    subject = Subject(run.path, opened.model.float().eval(), True, texts.timed, options.threads, run.path)
    return partial(_run, RUNTIMES[BASE].prepare(subject).answer, texts.timed), texts.examples


def _session(
    run: RunFolder,
    blanks: list[Measurement],
    known: Mapping[tuple[Any, ...], Measurement],
    reference: tuple[Callable[[], Any], int],
    options: Options,
    say: Callable[[str], None],
) -> list[Measurement]:
    """Measure one run in some runtimes; scores that are known, by key, are not computed again."""
    try:
        opened = open_trained(run.path, need_tokenizer=True)
        model = opened.model.float().eval()
        texts = read_texts(run.path, opened, options.texts)
    except FinepruneError as error:  # the other runs are measured all the same
        return [replace(blank, failed=one_line(error)) for blank in blanks]
    dense = run.cell.method == DENSE
    smaller = dense or _shrunk(run, model)
    with scratch_folder() as scratch:
        subject = Subject(run.path, model, dense, texts.inputs, options.threads, scratch)
        expected = _joined(answers_of(RUNTIMES[BASE].prepare(subject).answer, texts.timed))
        done: list[Measurement] = []
        prepared: dict[str, Prepared] = {}
        for blank in blanks:
            name = blank.runtime
            if RUNTIMES[name].of_dense and not smaller:
                done.append(replace(blank, failed=ZEROS))
                continue
            say(f"{run.name}: {name}")
            try:
                with quiet(), heard():
                    prepared[name] = RUNTIMES[name].prepare(subject)
                    scored = known.get(blank.key)
                    if scored is None:
                        scored = _scored(blank, prepared[name], texts, expected)
                        _keep(run.path, [replace(scored, failed=UNTIMED)], silent)
                    done.append(replace(scored, failed=None, bytes=prepared[name].bytes))
            except Exception as error:  # anything that a runtime raises: they are not under test
                prepared.pop(name, None)
                done.append(replace(blank, failed=one_line(error)))
        say(f"{run.name}: timing {len(prepared)} in {options.rounds} rounds")
        times = _times(prepared, texts.timed, reference, options.rounds)
        kind = type(model).__name__
        return [
            replace(
                entry, **times[entry.runtime], memory=_memory(prepared[entry.runtime], kind, texts, options)
            )
            if entry.runtime in prepared
            else entry
            for entry in done
        ]


def _shrunk(run: RunFolder, model: Any) -> bool:
    """Remove a model's empty heads and neurons, and return whether its matrices are much smaller then."""
    with contextlib.suppress(FinepruneError):  # a model whose heads are not known stays as it is
        shrink(model)
    return run.results is not None and summary(model).total < _SMALLER * run.results["total"]


def _scored(
    blank: Measurement, prepared: Prepared, texts: Texts, expected: dict[str, torch.Tensor]
) -> Measurement:
    """Fill in the score of a runtime's own answers, and their error.

    `expected` has torch's answers to the timed texts: those to all would take as long as torch's score.
    """
    logits = answers_of(prepared.answer, texts.inputs)
    finite = all(values.isfinite().all() for values in _joined(logits).values())
    error = error_of(_joined(answers_of(prepared.answer, texts.timed)), expected)
    if not finite or not np.isfinite(error):
        raise FinepruneError("its answers are not finite, or of another form")
    return replace(
        blank,
        score=texts.score(logits),
        error=error,
        wrong=RUNTIMES[blank.runtime].exact and error > _TOLERANCE,
        scored=texts.scored,
        available=texts.available,
        tokens=statistics.fmean(text["input_ids"].shape[1] for text in texts.timed),
    )


def _joined(answers: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
    """Return the logits of all texts behind one another, by name."""
    return {
        name: torch.from_numpy(np.concatenate([row.ravel() for row in rows]))
        for name, rows in answers.items()
    }


def _times(
    prepared: Mapping[str, Prepared],
    timed: list[Inputs],
    reference: tuple[Callable[[], Any], int],
    rounds: int,
) -> dict[str, dict[str, Any]]:
    """Return the fields of `Measurement` that are times, by runtime; all run in each round."""
    run_reference, count = reference
    calls = {_REFERENCE: run_reference}
    calls |= {name: partial(_run, each.answer, timed) for name, each in prepared.items()}
    timings = compare(interleave(calls, rounds), _REFERENCE)
    usual = timings[_REFERENCE].milliseconds / count
    return {
        name: {"ratio": each.ratio, "low": each.low, "high": each.high, "reference_ms": usual}
        for name, each in timings.items()
    }


def _run(answer: Answer, inputs: list[Inputs]) -> None:
    for text in inputs:
        answer(text)


def _memory(prepared: Prepared, kind: str, texts: Texts, options: Options) -> float | None:
    """Return the MB of a process that serves the model; None where this system does not tell, or unasked."""
    if not options.memory:
        return None
    ids = texts.timed[0]["input_ids"].tolist()
    request = resident_memory.Request(prepared.way, str(prepared.source), kind, ids, options.threads)
    try:
        return resident_memory.measure(request).process
    except FinepruneError:
        return None


def _keep(run: Path, new: list[Measurement], say: Callable[[str], None]) -> None:
    """Write measurements to the run's folder; if it cannot be written they are shown, and not kept."""
    try:
        keep(run, new)
    except FinepruneError as error:
        say(f"{one_line(error)}; it is not kept")


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Hold back the runtime's word on each model that is not sparse: here that is known."""
    logger = logging.getLogger("fineprune_runtime")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
