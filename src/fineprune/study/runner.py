"""Run a study: skip what is finished, continue what was cut, report failures and go on.

A run is a call of `work`: in this process or one of its own (`local_pool`), or on a cluster (`ray_pool`).
"""

import json
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from fineprune._extras import EXTRAS, require
from fineprune._files import exclusive, write_text
from fineprune._messages import one_line
from fineprune.checkpoint.model_folder import MODEL_GONE
from fineprune.errors import FinepruneError
from fineprune.study import local_pool, paper, ray_pool
from fineprune.study.grid import Run
from fineprune.study.report import leave_page
from fineprune.study.study_folder import FAILURES, SOURCE
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.results import read_results

_LOCKS = ".study"
"""The folder beside the runs for their locks and marks."""


class Failure(NamedTuple):
    """A run that failed before its end."""

    run: str
    error: str
    """One line."""

    trace: str
    """The traceback; empty if the line is enough."""


Ended = tuple[str, str | Failure]
"""The name of a run, and its score as a line or its failure."""


class Planned(NamedTuple):
    """A run with its length and its state."""

    run: Run
    length: str
    state: str
    """"finished", "no model" (finished, but its folder model is gone), "to do", "cut" (to be continued),
    "damaged" (its results.json cannot be read), or "differs": the folder is of another recipe.
    """


def plan(runs: Iterable[Run], out: Path) -> list[Planned]:
    """Return the runs in their order with length and state. Reads the run folders, but no data."""
    return [Planned(run, length(run), state(run, out)) for run in runs]


def state(run: Run, out: Path) -> str:
    """Return the state of a run by its folder, in a word of `Planned.state`."""
    folder = out / run.name
    if not (folder / "recipe.yaml").is_file():
        return "to do"
    try:
        same = Recipe.load(folder / "recipe.yaml") == run.recipe
    except FinepruneError:
        return "differs"
    if not same:
        return "differs"
    try:
        read_results(folder / "results.json")
    except FileNotFoundError:
        return "cut"
    except FinepruneError:
        return "damaged"
    return "finished" if (folder / "model").is_dir() else "no model"


def length(run: Run) -> str:
    """Its steps; where the recipe gives epochs, those, and an estimate where the paper says the size."""
    training = run.recipe.training
    if training.steps is not None:
        return f"{training.steps:,} steps"
    examples = paper.EXAMPLES.get(run.cell.task) if run.recipe.task.to_dict().get("hub") else None
    if training.epochs is None:
        return "steps by the number of examples"
    epochs = f"{training.epochs:g} epochs"
    if examples is None:
        return epochs
    steps = training.epochs * examples / (training.batch_size * training.accumulation)
    return f"{epochs}, about {round(steps, -2):,.0f} steps"


def run_study(
    runs: Sequence[Run],
    out: Path,
    jobs: int | None = None,
    ray: bool = False,
    say: Callable[[str], None] = print,
    source: str | None = None,
) -> list[Failure]:
    """Run what is not finished and return what failed; a failure stops only the runs that it would teach.

    Runs with a teacher start when all others are done.

    Args:
        runs: all runs of the study.
        out: their folder.
        jobs: runs at once; None: one, or with `ray` one for each core of the cluster (GPU, where it has any).
        ray: run on the Ray cluster of RAY_ADDRESS.
        say: called with a line as each run ends.
        source: the text of the study's file, which is left beside the runs, so that they can be repeated.

    Raises:
        FinepruneError: where another process runs a study in the folder (one that was killed does not hold
            it), the results of a run are damaged, an extra is missing, or the cluster cannot be reached.
    """
    require("study", "a study", EXTRAS["recipes"] + EXTRAS["study"])
    from fineprune.training.host.stopping import StopsAtSignals  # imports transformers, which plans need not

    cluster = ray_pool.import_ray() if ray else None

    def pool(batch: list[Run]) -> Iterator[Ended]:
        if cluster is not None:
            return ray_pool.outcomes(cluster, work, batch, out, jobs)
        return local_pool.outcomes(work, batch, out, out / _LOCKS, jobs or 1)

    refusal = f"{out}: a study is running there; wait for it, or name another folder with --out"
    connection = nullcontext() if cluster is None else ray_pool.connected(cluster, say)
    with exclusive(out / _LOCKS / "lock", refusal), StopsAtSignals(), connection:
        states = {run.name: state(run, out) for run in runs}
        for name in (name for name, there in states.items() if there == "damaged"):  # before any training
            try:
                read_results(out / name / "results.json")
            except FinepruneError as error:
                hint = "a study needs no --resume: delete it and start the study again"
                raise FinepruneError(f"{error} ({hint})") from error
        if source is not None:
            write_text(out / SOURCE, source)
        for name in (FAILURES, *(_begun(run.name) for run in runs)):
            (out / name).unlink(missing_ok=True)
        unfinished = [run for run in runs if states[run.name] not in ("finished", "no model")]
        count, failures = len(runs) - len(unfinished), list[Failure]()
        if count:
            say(f"{count} of {len(runs)} runs are finished")
        for name in (name for name, there in states.items() if there == "no model"):
            say(f"{name}: {MODEL_GONE}")
        for taught in (False, True):
            failed = {failure.run for failure in failures}
            wave = [run for run in unfinished if (run.teacher is not None) == taught]
            lost = [run for run in wave if run.teacher in failed]
            untaught = [
                (run.name, Failure(run.name, f"its teacher {run.teacher} failed", "")) for run in lost
            ]
            ready = [run for run in wave if run not in lost]
            for name, outcome in chain(untaught, _outcomes(ready, out, pool, "Ray" if ray else "loky")):
                count += 1
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                    lines = [json.dumps(failure._asdict()) + "\n" for failure in failures]
                    write_text(out / FAILURES, "".join(lines))
                    outcome = f"FAILED: {outcome.error}"
                say(f"{count}/{len(runs)} {name}: {outcome}")
    return failures


def work(run: Run, out: Path, directory: str, threads: int | None) -> Ended:
    """Do one run and return its name and how it ended.

    Args:
        run: what to run.
        out: the folder of the study, as seen from `directory`.
        directory: the working directory of the study, where paths of the recipe start.
        threads: for torch; None: as many as it takes by itself.
    """
    if os.getcwd() != directory:
        os.chdir(directory)  # a worker of a cluster starts elsewhere
    begun = out / _begun(run.name)
    begun.touch()
    outcome: str | Failure
    try:
        import torch

        from fineprune.training.run.train import run_recipe

        if threads is not None:
            torch.set_num_threads(threads)
        # A worker of a study that was killed may still be busy with this run: wait for it.
        with FileLock(out / _LOCKS / f"{run.name}.lock"):
            results = run_recipe(
                run.recipe, out / run.name, resume=True, progress=False, again="the same command"
            )
            leave_page(out / run.name)
        score = f"{results['metric']} {results['score']:.2%}"
        outcome = f"{score} with {results['density']:.2%} of the weights, {results['seconds']:.0f} s"
    except FinepruneError as error:
        outcome = Failure(run.name, one_line(error), "")
    except Exception as error:  # any error of one run: the others go on
        line = f"{type(error).__name__}: {one_line(error)}"
        outcome = Failure(run.name, line, traceback.format_exc())
    begun.unlink(missing_ok=True)  # a process that is ended does not come here: the run counts as lost
    return run.name, outcome


def _outcomes(
    runs: Iterable[Run],
    out: Path,
    pool: Callable[[list[Run]], Iterator[Ended]],
    kind: str,
) -> Iterator[Ended]:
    """Yield how each run ended, as the runs end.

    A worker that dies, usually out of memory, breaks loky's pool for all runs. Those under way then run again
    one by one, so that only the run that kills its process fails. With Ray only lost runs are repeated.
    """
    waiting = {run.name: run for run in runs}
    suspects: list[str] = []
    while waiting:
        batch = [waiting[suspects[0]]] if suspects else list(waiting.values())
        try:
            for name, outcome in pool(batch):
                del waiting[name]
                yield name, outcome
        except Exception as error:  # of the pool: `work` returns those of a run
            if suspects:
                lost = waiting.pop(suspects[0]).name
                line = "its process was killed, probably out of memory"
                if not isinstance(error, BrokenProcessPool):
                    line = f"its process ended: {one_line(error)}"
                yield lost, Failure(lost, line, "")
            else:
                suspects = [name for name in waiting if (out / _begun(name)).exists()]
                if not suspects:
                    raise FinepruneError(f"{kind} cannot start a run: {one_line(error)}") from error
        suspects = [name for name in suspects if name in waiting]


def _begun(name: str) -> str:
    """Return the path, from the study's folder, of the file that is there while a run is under way."""
    return f"{_LOCKS}/{name}.begun"
