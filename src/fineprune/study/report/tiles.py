"""Make the top of a run's page: its score, the score lost to dense, density, file size and speed."""

import shlex
from typing import Any, NamedTuple

from fineprune.study.frontier.measurements import Measurement, content_of, read_measurements
from fineprune.study.grid import DENSE
from fineprune.study.grouping import share_of
from fineprune.study.report.comparison import Dense, progress
from fineprune.study.report.formatting import NONE, exact, megabytes, number_of, percent, points, times
from fineprune.study.study_folder import RunFolder
from fineprune.training.run.results import ENGINE, fastest, parameters_left, size_of

_UNMEASURED = "not measured"


class Tile(NamedTuple):
    """One number of a run in large type, with the notes that it needs."""

    name: str
    """The name in the files."""

    label: str
    text: str
    value: str | None
    lines: list[str]
    command: str = ""
    """What measures the number, where that was not done."""

    @property
    def measured(self) -> bool:
        """Whether the text is a number."""
        return self.value is not None


def tiles(run: RunFolder, dense: Dense | None) -> list[Tile]:
    """Return the tiles of a run."""
    if run.results is None:
        return [Tile("score", "Score", NONE, None, [f"not finished: {progress(run)}"])]
    lost = [] if _is_dense(run) else [_lost(run, run.results, dense)]
    return [_score(run.results), *lost, _density(run, run.results), _size(run), _speed(run)]


def details(run: RunFolder, dense: Dense | None) -> list[str]:
    """Return sentences about the numbers of a run that do not fit its tiles."""
    results = run.results
    if results is None:
        return []
    lines: list[str] = []
    if dense is not None and not _is_dense(run):
        begun = f"This run began with that dense model, after its {dense.before}." if dense.before else ""
        differs = (
            f"The training of the dense run differs: {'; '.join(dense.differs)}." if dense.differs else ""
        )
        lines += filter(None, [begun, differs])
    teacher, arithmetic = number_of(results.get("teacher_score")), results.get("scored_in")
    if teacher is not None:
        lines.append(f"The teacher's score: {percent(teacher)}.")
    if isinstance(arithmetic, str):
        lines.append(f"Scored in {arithmetic}.")
    size = size_of(results)
    if size is not None:
        others = [f"{megabytes(other)} as {kind}" for kind, other in size.packed.items() if kind != "float32"]
        lines.append(
            "The file is what fineprune compact writes with float32 values; model/ stores zeros in full."
        )
        if others:
            lines.append(f"Its size with other values: {', '.join(others)}.")
    return lines


def _is_dense(run: RunFolder) -> bool:
    return run.cell.method == DENSE and not run.cell.distillation


def _score(results: dict[str, Any]) -> Tile:
    score = results["score"]
    examples = results.get("examples")
    count = number_of(examples.get("validation")) if isinstance(examples, dict) else None
    lines = [] if count is None else [f"on {count:,} validation examples"]
    return Tile("score", f"Score ({results['metric']})", percent(score), exact(score), lines)


def _lost(run: RunFolder, results: dict[str, Any], dense: Dense | None) -> Tile:
    if dense is None:
        lines = ["no dense run to compare with; this trains one:"]
        return Tile("lost", "Against dense", _UNMEASURED, None, lines, _dense_command(run))
    if dense.constant:
        lines = ["the dense run learned nothing: it gives every validation example the same answer"]
        return Tile("lost", "Against dense", _UNMEASURED, None, lines)
    difference, whole = results["score"] - dense.score, share_of(results["score"], dense.score)
    same = dense.seed == run.recipe["training"].get("seed")
    lines = [f"dense{'' if same else f', seed {dense.seed}'}: {percent(dense.score)}"]
    lines += [] if whole is None else [f"{percent(whole)} of the dense score"]
    return Tile("lost", "Against dense", points(difference), exact(difference), lines)


def _dense_command(run: RunFolder) -> str:
    """Return the command that trains the dense counterpart of a run, into a folder beside it."""
    sections = ("pruning", "distillation", "refine", "dense")
    without = [f"{name}=null" for name in sections if run.recipe.get(name) is not None]
    out = run.path.parent / f"{run.name}-dense"
    return shlex.join(["fineprune", "run", str(run.path / "recipe.yaml"), *without, "--out", str(out)])


def _density(run: RunFolder, results: dict[str, Any]) -> Tile:
    left, every = parameters_left(results)
    lines = [
        f"{results['kept']:,} of {results['total']:,} weights in the pruned matrices",
        f"{left:,} of all {every:,} parameters ({percent(left / every)})",
    ]
    if run.cell.method == DENSE:
        lines[0] = "nothing is pruned"
    return Tile("density", "Density", percent(results["density"]), exact(results["density"]), lines)


def _size(run: RunFolder) -> Tile:
    size = size_of(run.results)
    if size is None:
        lines = ["runs of an older version did not say it; this writes the file:"]
        command = shlex.join(["fineprune", "compact", str(run.path), str(run.path / "compact")])
        return Tile("packed_bytes", "File size", _UNMEASURED, None, lines, command)
    packed = size.packed["float32"]
    lines = [f"of {megabytes(size.dense)} dense: {percent(packed / size.dense)}"]
    smallest = min(size.packed, key=lambda kind: size.packed[kind])
    if smallest != "float32":
        least = size.packed[smallest]
        lines.append(f"smallest: {megabytes(least)}, {percent(least / size.dense)} ({smallest})")
    return Tile("packed_bytes", "File size", megabytes(packed), exact(packed), lines)


def _speed(run: RunFolder) -> Tile:
    speed = fastest(run.timings)
    if speed is None and (found := _measured_by_frontier(run)) is not None:
        lines = [
            "as fast as torch on the model that the runs were timed against, in "
            f"{found.runtime.removeprefix(ENGINE)} ({times(found.low)} to {times(found.high)})",
            f"{found.reference_ms / found.ratio:.2f} ms a text of {found.tokens:.0f} tokens on average",
        ]
        return Tile("ratio", "Speed", times(found.ratio), exact(found.ratio), lines)
    if speed is None:
        lines = ["this measures it:"]
        if run.bench is not None:
            lines = [
                "bench.json has no right answer of the engine with these weights; this measures it again:"
            ]
        command = shlex.join(["fineprune", "bench", str(run.path)])
        return Tile("ratio", "Speed", _UNMEASURED, None, lines, command)
    dtype = speed.peer.removeprefix(ENGINE)
    lines = [
        f"as fast as torch on the same weights, in {dtype} ({times(speed.low)} to {times(speed.high)})",
        f"{speed.milliseconds:.2f} ms for {speed.where}",
        *([] if dtype == "float32" else ["the score is that of float32"]),
    ]
    return Tile("ratio", "Speed", times(speed.ratio), exact(speed.ratio), lines)


def _measured_by_frontier(run: RunFolder) -> Measurement | None:
    """Return the fastest right measurement of the engine that `fineprune frontier` left for this model."""
    known = read_measurements(run.path)
    if not known:  # the digest reads all weights
        return None
    content = content_of(run.path / "model", run.recipe["training"].get("max_length") or 0)
    return max(
        (
            entry
            for entry in known
            if entry.content == content
            and entry.runtime.startswith(ENGINE)
            and not (entry.failed or entry.wrong)
        ),
        key=lambda entry: entry.ratio,
        default=None,
    )
