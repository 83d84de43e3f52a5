"""The tables of a study, as text, Markdown and CSV.

A run without results counts as missing: it has no number, and the column of seeds says so.
"""

import csv
import html
import io
from collections.abc import Iterable
from typing import Literal, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from fineprune.study import paper
from fineprune.study.grid import DENSE, Cell
from fineprune.study.grouping import Group, Row, groups, share

_HEADER = (
    *("task", "method", "density", "scope", "distillation", "seeds", "planned"),
    *("metric", "mean", "deviation", "of_dense", "kept", "paper"),
)
_MORE = ("settings", "constant")
_LEFT = {"heads": "heads", "neurons": "neurons", "flops": "FLOPs left"}
_SHAPE = ("structure", *_LEFT)
_NONE = "–"  # what stands for a number that there is not
# Tasks that are scored by two numbers; the others show their main one.
_SHOWN = paper.METRICS | {
    "mrpc": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
    "embeddings": ("spearman", "sts_spearman", "retrieval_mrr_at_10"),
}


class Table(NamedTuple):
    """Cells of text, and the positions (line, column) of those that are the best of their column."""

    title: str
    columns: tuple[str, ...]
    lines: list[tuple[str, ...]]
    best: frozenset[tuple[int, int]]

    def _repr_html_(self) -> str:
        """Return the table for a notebook; the best of a column is bold."""
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        body = "\n".join(
            f"<tr>{''.join(self._cell(line, column) for column in range(len(texts)))}</tr>"
            for line, texts in enumerate(self.lines)
        )
        title = f"<caption>{html.escape(self.title)}</caption>"
        return f"<table>\n{title}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def _cell(self, line: int, column: int) -> str:
        text = html.escape(self.lines[line][column])
        return f"<td><b>{text}</b></td>" if (line, column) in self.best else f"<td>{text}</td>"


def tables(rows: Iterable[Row]) -> list[Table]:
    """Return a table for each task without and with teacher, with the dense runs in both."""
    every = groups(rows)
    kinds = dict.fromkeys((group.cell.task, group.cell.distillation) for group in every)
    made = []
    for task, distilled in kinds:
        dense = [group for group in every if group.cell.task == task and group.cell.method == DENSE]
        pruned = [
            group
            for group in every
            if (group.cell.task, group.cell.distillation) == (task, distilled) and group not in dense
        ]
        if pruned or not any(kind == (task, True) for kind in kinds):
            made.append(_table(task, distilled, [*dense, *pruned], every))
    return made


def metrics_of(task: str, members: Iterable[Group]) -> tuple[str, ...]:
    """Return the metrics in the tables of a task: those of the usual ones that its runs have."""
    members = list(members)
    finished = [group for group in members if group.finished]
    if not finished:
        return _SHOWN.get(task, ("score",))
    usual = tuple(name for name in _SHOWN.get(task, ()) if any(group.values(name) for group in finished))
    return usual or (str(finished[0].metric),)


def as_markdown(made: Iterable[Table]) -> str:
    """Return the tables as Markdown with a heading each; the best of a column is bold."""
    parts = []
    for table in made:
        rule = ["---" if column in ("density", "method") else "---:" for column in table.columns]
        lines = [
            [f"**{text}**" if (line, column) in table.best else text for column, text in enumerate(texts)]
            for line, texts in enumerate(table.lines)
        ]
        bars = [f"| {' | '.join(texts)} |" for texts in (table.columns, rule, *lines)]
        parts.append("\n".join([f"### {table.title}", "", *bars, ""]))
    return "\n".join(parts)


def as_text(made: Iterable[Table], width: int | None = None, color: bool = False) -> str:
    """Return the tables for a terminal; the best of a column has a star, and is bold if there is color."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=color or None, highlight=False)
    for table in made:
        shown = RichTable(title=escape(table.title), title_justify="left")
        for column in table.columns:
            wraps = column == "method" or column.startswith("paper")  # the others would lose digits
            side: Literal["left", "right"] = "left" if column in ("density", "method") else "right"
            shown.add_column(column, justify=side, no_wrap=not wraps, overflow="fold")
        for line, texts in enumerate(table.lines):
            marked = [
                f"[bold]{escape(text)}*[/bold]" if (line, column) in table.best else escape(text)
                for column, text in enumerate(texts)
            ]
            last = line + 1 == len(table.lines) or table.lines[line + 1][0] != texts[0]
            shown.add_row(*marked, end_section=last)
        console.print(shown)
    return file.getvalue()


def as_csv(rows: Iterable[Row]) -> str:
    """Return a line for each cell and metric, with all digits; unknown values are empty.

    The last columns, of other settings and seeds that learned nothing, and of structures, are there if a line
    has either.
    """
    every = groups(rows)
    shaped = any(group.cell.structure or _shrinks(group) for group in every)
    more = any(group.cell.variant or group.constant for group in every)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEADER + _MORE * more + _SHAPE * shaped)
    for group in every:
        cell = group.cell
        same = [one for one in every if one.cell.task == cell.task]
        whole, kept = share(group, every), group.kept
        for metric in metrics_of(cell.task, same):
            theirs = dict(zip(paper.METRICS.get(cell.task, ()), paper.numbers(cell) or (), strict=False))
            settings = (cell.task, cell.method, cell.density, cell.scope, str(cell.distillation).lower())
            measured = (group.mean(metric), group.deviation(metric))
            counts = (len(group.finished), len(group.rows))
            main = whole if metric == group.metric else None
            line = [*settings, *counts, metric, *measured, main, kept, theirs.get(metric)]
            shape = [cell.structure, *map(group.left, _LEFT)] * shaped
            writer.writerow(line + [cell.variant, group.constant] * more + shape)
    return file.getvalue()


def _table(task: str, distilled: bool, members: list[Group], every: list[Group]) -> Table:
    metrics = metrics_of(task, members)
    theirs = any(paper.numbers(group.cell) for group in members)
    left = _LEFT if any(map(_shrinks, members)) else {}
    named = (*(f"{metric}, %" for metric in metrics), "of dense", "kept", *left.values())
    columns = ("density", "method", *named, "seeds")
    if theirs:
        columns += (f"paper: {' / '.join(paper.METRICS[task])}",)
    lines = []
    for group in members:
        whole, kept = share(group, every), group.kept
        numbers = [_number(group, metric) for metric in metrics]
        shares = [
            _NONE if value is None else f"{value:.1%}" for value in (whole, kept, *map(group.left, left))
        ]
        done, planned = len(group.finished), len(group.rows)
        seeds = str(done) if done == planned else f"{done} of {planned}"
        pair = paper.numbers(group.cell)
        label = group.label + (f" ({group.remark})" if group.remark else "")
        line = (_percent(group.cell), label, *numbers, *shares, seeds)
        lines.append((*line, " / ".join(map(str, pair)) if pair else _NONE) if theirs else line)
    teacher = "with a teacher" if distilled else "without a teacher"
    return Table(f"{task}, {teacher}", columns, lines, _best(members, metrics))


def _best(members: list[Group], metrics: tuple[str, ...]) -> frozenset[tuple[int, int]]:
    """Return the cells of the highest mean of each metric at each density, among two or more pruned runs.

    Those that learned nothing are never the best.
    """
    best = set()
    for density in {group.cell.density for group in members if group.cell.density is not None}:
        for column, metric in enumerate(metrics, 2):
            means = {
                line: mean
                for line, group in enumerate(members)
                if group.cell.density == density and (mean := group.mean(metric)) is not None
            }
            top = max((mean for line, mean in means.items() if members[line].learned), default=None)
            if len(means) > 1:
                best |= {
                    (line, column) for line, mean in means.items() if mean == top and members[line].learned
                }
    return frozenset(best)


def _shrinks(group: Group) -> bool:
    return any(group.left(what) is not None for what in ("heads", "neurons"))


def _number(group: Group, metric: str) -> str:
    mean, deviation = group.mean(metric), group.deviation(metric)
    if mean is None:
        return _NONE
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _percent(cell: Cell) -> str:
    """Return the requested density; a run that kept the zeros of its model had none."""
    if cell.density is not None:
        return f"{100 * cell.density:g} %"
    return "100 %" if cell.method == DENSE else _NONE
