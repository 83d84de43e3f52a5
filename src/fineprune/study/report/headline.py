"""Make the top of the page: remaining weights, lost score, size and speed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from fineprune.study.grid import DENSE, Cell
from fineprune.study.grouping import Group, Row, dense_mean, groups, share, share_of
from fineprune.study.report import formatting
from fineprune.study.report.comparison import Dense, progress
from fineprune.study.report.formatting import NONE, Entry, Grid, counted, listed, numeric, percent
from fineprune.study.study_folder import RunFolder
from fineprune.training.run.results import ENGINE, PeerTiming, fastest, size_of

_MEASURED = {
    "size": "Size: float32 values, packed as `fineprune compact` does, of the dense model's.",
    "speed": "Speed: the engine's fastest type against torch, on the same weights; the mean over the seeds "
    "that were timed alike, whose number is in brackets. Whatever the type, the score is that of float32.",
}  # columns of `best` that runs may lack

ONE_SEED = "One seed each: small differences may be noise."


class Tile(NamedTuple):
    """One number of a run in large type, with the notes that it needs."""

    name: str
    """The name in the files."""

    label: str
    text: str
    value: str | None
    lines: list[str]


def label_of(cell: Cell) -> str:
    """Return a method with the settings in which it differs from its plain form, and from other runs."""
    taught = "with a teacher" if cell.distillation else None
    return ", ".join(filter(None, (cell.method, cell.scope, taught, cell.variant)))


def title_of(cell: Cell) -> str:
    """Return the title of a run."""
    density = "" if cell.density is None else f" at {100 * cell.density:g}\N{NO-BREAK SPACE}%"
    return f"{cell.task}: {label_of(cell)}{density}, seed {cell.seed}"


def states(runs: Sequence[RunFolder], failed: dict[str, str]) -> dict[str, str]:
    """Return "finished", "failed" or "not finished" by run, also for runs that failed without a folder."""
    by_name = {run.name: "finished" for run in runs if run.results is not None}
    for run in runs:
        by_name.setdefault(run.name, "failed" if run.name in failed else "not finished")
    return by_name | {name: "failed" for name in failed if name not in by_name}


def tiles(run: RunFolder, dense: Dense | None) -> list[Tile]:
    """Return the four tiles of a run."""
    return [_score(run, dense), _kept(run), _size(run), _speed(run)]


def best(runs: Sequence[RunFolder]) -> Grid:
    """Return a table with the dense runs of each task, and the best ones at each density by their mean.

    Runs that learned nothing are never the best; where all are such, the line says so.
    """
    every = groups([Row(run.cell, run.results) for run in runs])
    finished = [group for group in every if group.finished]
    lines = []
    for task in dict.fromkeys(group.cell.task for group in finished):
        members = [group for group in finished if group.cell.task == task]
        lines += [_line(group, every, runs) for group in members if group.cell.method == DENSE]
        pruned = [group for group in members if group.cell.method != DENSE]
        for density in sorted({group.cell.density or 1.0 for group in pruned}, reverse=True):
            same = [group for group in pruned if (group.cell.density or 1.0) == density]
            lines.append(_line(max(same, key=lambda group: (group.learned, _mean(group))), every, runs))
    texts = ("task", "asked", "best method")
    numbers = ("score", "± seeds", "lost to dense", "of dense", "kept", "of all parameters")
    columns = [Entry(text) for text in texts] + [
        Entry(text, number=True) for text in (*numbers, *_MEASURED, "seeds")
    ]
    return Grid("The best at each density", columns, lines)


def one_seed(rows: Iterable[Row]) -> bool:
    """Return whether every setting has only one finished seed."""
    counts = [len(group.finished) for group in groups(rows) if group.finished]
    return bool(counts) and max(counts) == 1


def legend(left_out: Sequence[str], single: bool = False) -> list[str]:
    """Return the explanations of the columns of `best`, except those left out; `single`: one seed each."""
    lines = ["Means over seeds, in percent.", *([ONE_SEED] if single else [])]
    lines.append("Kept: of the pruned matrices; of all parameters: what remains of the whole model.")
    lines += [line for name, line in _MEASURED.items() if name not in left_out]
    lacking = [name for name in _MEASURED if name in left_out]
    return lines + ([f"Not measured of these runs: {', '.join(lacking)}."] if lacking else [])


def of_group(group: Group, runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the finished runs of a group."""
    return [run for run in runs if any(run.results is results for results in group.finished)]


def _mean(group: Group) -> float:
    mean = group.mean(group.metric or "")
    return float("-inf") if mean is None or mean != mean else mean


def _asked(cell: Cell) -> str:
    """Return the requested density; a run that kept the zeros of its model had none."""
    if cell.density is not None:
        return f"{100 * cell.density:g}\N{NO-BREAK SPACE}%"
    return "dense" if cell.method == DENSE else NONE


def _line(group: Group, every: list[Group], runs: Sequence[RunFolder]) -> list[Entry]:
    cell, members = group.cell, of_group(group, runs)
    metric = group.metric or ""
    mean, deviation, whole = group.mean(metric), group.deviation(metric), share(group, every)
    dense, lost = dense_mean(group, every), None
    if mean is not None and dense is not None and cell.method != DENSE:
        lost = mean - dense
    sizes = [size for run in members if (size := size_of(run.results)) is not None]
    small = fmean(size.packed["float32"] / size.dense for size in sizes) if sizes else None
    fast, timed = _alike([time for run in members if (time := fastest(run.timings)) is not None])
    left = fmean(_left(results) / results["parameters"] for results in group.finished)
    shown = formatting.signed(f"{mean:.1f} ") + metric if mean is not None else NONE
    return [
        Entry(cell.task),
        Entry(_asked(cell)),
        Entry(label_of(cell) + (f" ({group.remark})" if group.remark else "")),
        numeric(mean, shown),
        numeric(deviation, "" if deviation is None else f"{deviation:.1f}"),
        numeric(lost, "" if lost is None else formatting.signed(f"{lost:+.1f}")),
        numeric(whole, percent(whole)),
        numeric(group.kept, percent(group.kept)),
        numeric(left, percent(left)),
        numeric(small, percent(small)),
        numeric(fast, timed),
        numeric(len(group.finished), str(len(group.finished))),
    ]


def _alike(times: list[PeerTiming]) -> tuple[float | None, str]:
    """Return the mean ratio of those timed with the most common type, input and machine, and its text."""
    if not times:
        return None, ""
    (kind, count), *_ = Counter((time.peer, time.where) for time in times).most_common()
    ratio = fmean(time.ratio for time in times if (time.peer, time.where) == kind)
    return ratio, f"{formatting.times(ratio)} {kind[0].removeprefix(ENGINE)} ({count})"


def _left(results: dict[str, Any]) -> int:
    """Return the remaining parameters of the complete model."""
    return int(results["parameters"] - results["total"] + results["kept"])


def _score(run: RunFolder, dense: Dense | None) -> Tile:
    if run.results is None:
        return Tile("score", "Score", NONE, None, [f"not finished: {progress(run)}"])
    score, metric = run.results["score"], run.results["metric"]
    lines = [*_against(run, score, dense), *_about_score(run.results)]
    return Tile("score", f"Score ({metric})", percent(score), formatting.exact(score), lines)


def _against(run: RunFolder, score: float, dense: Dense | None) -> list[str]:
    """Return lines that compare a score with the dense one, and what else differs between the two."""
    if run.cell.method == DENSE and not run.cell.distillation:
        return ["the dense run itself"]
    if dense is None:
        return ["no dense run to compare with"]
    whole = share_of(score, dense.score)
    lost = formatting.points(score - dense.score) + ("" if whole is None else f", {percent(whole)} of dense")
    seed = run.recipe["training"].get("seed")
    beside = "dense" if dense.seed == seed else f"dense, seed {dense.seed}"
    lines = [f"{beside}: {percent(dense.score)}", lost]
    lines += [f"begun with that dense model, after its {dense.before}"] if dense.before else []
    return lines + ([f"the dense run differs: {'; '.join(dense.differs)}"] if dense.differs else [])


def _about_score(results: dict[str, Any]) -> list[str]:
    """Return the teacher's score and the arithmetic of the score, of runs that have them."""
    teacher, arithmetic = formatting.number_of(results.get("teacher_score")), results.get("scored_in")
    lines = [] if teacher is None else [f"its teacher: {percent(teacher)}"]
    return lines + ([f"scored in {arithmetic}"] if isinstance(arithmetic, str) else [])


def remarks(runs: Sequence[RunFolder]) -> list[str]:
    """Return sentences on runs whose numbers need a word: nothing learned, counted once, warned."""
    if len(runs) == 1:
        return [*filter(None, [_learned_nothing(runs[0].results)])]
    lines = []
    constant = [run.name for run in runs if _learned_nothing(run.results)]
    if constant:
        lines.append(
            f"Learned nothing, as all validation examples get one answer: {listed(constant)}. "
            "Such a run is the best of nothing."
        )
    first: dict[Cell, RunFolder] = {}
    for run in runs:
        if run.results is None:
            continue
        other = first.setdefault(run.cell, run)
        if other is not run and other.results is not None:
            score, same = run.results["score"], other.results["score"]
            differs = "" if score == same else f", with {percent(score, 2)} instead of {percent(same, 2)}"
            lines.append(f"{run.name} repeats {other.name}, seed included{differs}: counted once.")
    warned = [run.name for run in runs if (run.results or {}).get("warnings")]
    if warned:
        lines.append(
            f"Warnings were given in {counted(len(warned), 'run')}, whose pages have them: {listed(warned)}."
        )
    return lines


def _learned_nothing(results: dict[str, Any] | None) -> str:
    """Return a sentence on a run that gives every example one answer; empty for others."""
    if results is None or results.get("constant") is not True:
        return ""
    majority = formatting.number_of(results.get("majority"))
    often = "" if majority is None else f", which alone is right for {percent(majority)} of them"
    return f"This run learned nothing: it gives all validation examples the same answer{often}."


def _kept(run: RunFolder) -> Tile:
    if run.results is None:
        return Tile("density", "Kept", NONE, None, ["not finished"])
    results = run.results
    left, every = _left(results), results["parameters"]
    lines = [
        f"{results['kept']:,} of {results['total']:,} weights in the pruned matrices",
        f"{left:,} of all {every:,} parameters ({percent(left / every)})",
    ]
    if run.cell.method == DENSE:
        lines[0] = "nothing is pruned"
    return Tile("density", "Kept", percent(results["density"]), formatting.exact(results["density"]), lines)


def _size(run: RunFolder) -> Tile:
    size = size_of(run.results)
    if size is None:
        return Tile("packed_bytes", "Size", "not measured", None, ["runs of an older version did not say it"])
    size_packed = size.packed["float32"]
    others = [
        f"{kind}: {formatting.megabytes(other)}" for kind, other in size.packed.items() if kind != "float32"
    ]
    lines = [
        f"of {formatting.megabytes(size.dense)} dense: {percent(size_packed / size.dense)}",
        ", ".join(others),
    ]
    smallest = min(size.packed, key=lambda kind: size.packed[kind])
    if smallest != "float32":
        least = size.packed[smallest]
        lines.append(f"smallest: {smallest}, {formatting.megabytes(least)}, {percent(least / size.dense)}")
    lines.append("what fineprune compact writes; model/ stores zeros in full")
    return Tile(
        "packed_bytes",
        "Size, packed",
        formatting.megabytes(size_packed),
        formatting.exact(size_packed),
        [*filter(None, lines)],
    )


def _speed(run: RunFolder) -> Tile:
    speed = fastest(run.timings)
    if speed is None:
        why = f"fineprune bench {run.path}"
        if run.bench is not None:
            why = "bench.json has no right answer of the engine with these weights"
        return Tile("ratio", "Speed", "not measured", None, [why])
    dtype = speed.peer.removeprefix(ENGINE)
    lines = [
        f"times torch, {dtype} ({formatting.times(speed.low)} to {formatting.times(speed.high)})",
        f"{speed.milliseconds:.2f} ms for {speed.where}",
        *([] if dtype == "float32" else ["the score is that of float32"]),
    ]
    return Tile("ratio", "Speed", formatting.times(speed.ratio), formatting.exact(speed.ratio), lines)
