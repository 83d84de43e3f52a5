"""Say what a frontier does not show, and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fineprune._extras import EXTRAS
from fineprune.study.figures.style import listed
from fineprune.study.frontier.measurements import Measurement
from fineprune.study.frontier.measuring import ZEROS
from fineprune.study.frontier.points import Task
from fineprune.study.frontier.runtimes import RUNTIMES, missing


def notes_of(task: Task, found: Mapping[Path, Sequence[Measurement]]) -> list[str]:
    """Return a line for each runtime that is not installed, each reason why one failed, and other gaps."""
    absent: dict[tuple[str, ...], list[str]] = {}
    for name in RUNTIMES:
        if modules := missing(name):
            absent.setdefault(tuple(modules), []).append(name)
    extras = {module: extra for extra, modules in EXTRAS.items() for module in modules}
    lines = [
        f"not measured, {listed(names)}: {', '.join(modules)} not installed; pip install "
        f"'fineprune[{extras[modules[0]]}]'"
        for modules, names in absent.items()
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for run in task.runs:
        for entry in found.get(run.path, []):
            if entry.failed is not None:
                reasons.setdefault((entry.failed, run.name), []).append(entry.runtime)
    shared: dict[tuple[str, str], list[str]] = {}
    for (reason, run_name), names in reasons.items():
        shared.setdefault((reason, listed(names)), []).append(run_name)
    lines += [
        f"not measured, {runtimes} of {listed(runs)}: {reason}" for (reason, runtimes), runs in shared.items()
    ]
    if reasons.keys() - {(ZEROS, run.name) for run in task.runs}:
        lines.append("what failed is measured again with another version of its runtime, or with --again")
    lines += task.notes
    if not any(model.dense for model in task.models):
        lines.append("there is no dense run of this task: no share of its score can be said")
    return lines
