"""The figure as an object, the formats that it is written in, and its style: colors, markers, ticks, legends.

matplotlib is imported when something is drawn, and used by its objects alone: no pyplot, no backend.
"""

import csv
import io
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fineprune._extras import require
from fineprune._files import make_folder, staged_file, write_text
from fineprune.config import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

GRAY = "#8c8c8c"
"""The color of pruned weights; visible on white and on near black."""

# Colors after Okabe and Ito, in an order in which neighbors differ for color-blind readers. All have a
# contrast of 3 or more on white and on near black, hence neither their yellow nor their light blue.
_COLORS = ("#D55E00", "#B5659A", "#0072B2", "#009E73", "#8A7B00", "#7A6BD0", "#5F7F8F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d", "H", "8", "x", "+", "*")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1.2, 1.2)))
# Stand-ins in the rendered SVG for what a page chooses: its ink, and its background.
_INK, _PAPER = "#010203", "#fcfdfe"
_LIGHT = {_INK: "#1a1a1a", _PAPER: "#ffffff"}
_RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same measures everywhere
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.titlelocation": "left",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "fineprune",
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,  # a number above the axis that all labels are to be added to
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), _PAPER),
}
NOISE = 1e-12
"""A value below this is zero but for rounding."""

_ALIKE = 1e-9  # of two values: their difference as a share of them is rounding
_DRAWING = threading.RLock()  # matplotlib's settings are the process's
_TAG = re.compile(r"<[^>]*>")
_FONT = "'DejaVu Sans', Verdana, Arial, sans-serif"


@dataclass(frozen=True)
class Figure:
    """A picture with its data."""

    name: str
    """File name without ending."""

    title: str
    caption: str
    """A text about the content, the runs that it is of, and missing data."""

    header: tuple[str, ...]
    data: list[tuple[object, ...]]
    """Every number that is drawn."""

    draw: "Callable[[], Canvas]"
    """Draws the figure again."""

    sentence: str = ""
    """All that the picture would show, where that is one number or a few; a page has it in its place."""

    def svg(self) -> str:
        """Return one `<svg>` element for a page.

        Its ink is the page's color of text, its background the page's, it has no size of its own, and its ids
        start with the figure's name.
        """
        text = _recolored(self._svg, {_INK: "currentColor", _PAPER: "none"})
        size, rest = text.split(">", 1)
        size = re.sub(r' (?:width|height)="[^"]*"', "", size)
        return f'{size} role="img" aria-label="{escape(self.title)}">{rest}'

    def csv(self) -> str:
        """Return the data, with all digits of the numbers."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(self.data)
        return file.getvalue()

    def save(self, folder: Path) -> None:
        """Write NAME.svg, NAME.png and NAME.csv, each whole or not at all.

        Raises:
            WriteError: the folder cannot be made or written.
        """
        make_folder(folder)
        write_text(folder / f"{self.name}.svg", _recolored(self._svg, _LIGHT) + "\n")
        write_text(folder / f"{self.name}.csv", self.csv())
        with staged_file(folder / f"{self.name}.png") as beside:
            beside.write_bytes(self.png())

    def png(self) -> bytes:
        """Return a picture of 200 dots per inch, on white."""
        light = {name: _LIGHT.get(value, value) for name, value in _RC.items() if isinstance(value, str)}
        return self._rendered("png", light, dpi=200)

    @cached_property
    def _svg(self) -> str:
        """The SVG, drawn once in the stand-in colors."""
        text = self._rendered("svg", {}, metadata={"Date": None}).decode()
        text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = text.replace("<svg ", '<svg style="stroke-linejoin: round; stroke-linecap: butt" ', 1)
        return _TAG.sub(self._own, text).rstrip()

    def _own(self, tag: re.Match[str]) -> str:
        """Return a tag with ids of this figure only, and other fonts in case DejaVu is not installed."""
        text = tag[0]
        if text.startswith("<image"):  # its id is of its content, and two may be alike; nothing refers to it
            text = re.sub(r' id="[^"]*"', "", text)
        text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{self.name}-", text)
        return re.sub(r"'DejaVu Sans'(?:, [^;:\"]*)?", _FONT, text)

    def _rendered(self, kind: str, colors: dict[str, str], **options: Any) -> bytes:
        require("study", "a figure", ("matplotlib",))
        from matplotlib import rc_context

        buffer = io.BytesIO()
        with _DRAWING, rc_context(_RC | colors), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.filterwarnings("ignore", "Glyph .* missing")  # of a label; a browser has other fonts
            canvas = self.draw()
            for axis in canvas.axes:
                widen_constant(axis)
            canvas.savefig(buffer, format=kind, **options)
        return buffer.getvalue()


class Style(NamedTuple):
    """The style of a method, the same in every figure."""

    color: str
    marker: str
    dash: Any


def style(method: str) -> Style:
    """Return the color, marker and line of a method, by its position in the table of methods."""
    known = list(METHODS)
    index = known.index(method) if method in known else len(known)
    if method == "dense":
        return Style(ink(), "*", "-")
    turn = index // len(_COLORS)
    return Style(_COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)], _DASHES[turn % len(_DASHES)])


def ink() -> str:
    """Return the current color of text."""
    from matplotlib import rcParams

    return str(rcParams["text.color"])


def panels(
    count: int, across: int = 2, width: float = 6.8, height: float = 2.6
) -> "tuple[Canvas, list[Axes]]":
    """Return a figure of `count` panels, `across` in a row, each row `height` inches high."""
    from matplotlib.figure import Figure as Canvas

    columns = min(count, across)
    rows = -(-count // columns)
    size = (width if columns > 1 else min(width, 4.8), rows * height + 0.5)
    canvas = Canvas(figsize=size, layout="constrained")
    axes = [canvas.add_subplot(rows, columns, index + 1) for index in range(count)]
    for axis in axes:
        axis.grid(True, color=ink(), alpha=0.12, linewidth=0.6)
        axis.set_axisbelow(True)
    return canvas, axes


def widen_constant(axis: "Axes") -> None:
    """Give a linear axis room where its values differ by no more than rounding: else labels are of that."""
    low, high = axis.dataLim.y0, axis.dataLim.y1
    if axis.get_yscale() != "linear" or not math.isfinite(high - low):
        return
    size = max(abs(low), abs(high))
    bottom, top = axis.get_ylim()
    if size < NOISE and top - bottom < _ALIKE:
        axis.set_ylim(-1, 1)
    elif high - low < _ALIKE * size and top - bottom < 0.01 * size:
        axis.set_ylim((low + high) / 2 - 0.1 * size, (low + high) / 2 + 0.1 * size)


def legend(canvas: "Canvas", entries: Iterable[tuple[Any, str]]) -> None:
    """Draw one legend for all panels, above them and outside."""
    entries = list(entries)
    if entries:
        handles, labels = zip(*entries, strict=True)
        fits = sum(len(label) + 8 for label in labels) < 14 * canvas.get_figwidth()  # in characters
        columns = len(labels) if fits else min(4, -(-len(labels) // 2))
        canvas.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=columns,
            handlelength=2.4,
            columnspacing=1.4,
            borderaxespad=0.2,
        )


def handle(method: str, **changes: Any) -> Any:
    """Return the line of a method for a legend."""
    from matplotlib.lines import Line2D

    color, marker, dash = style(method)
    return Line2D([], [], **({"color": color, "marker": marker, "linestyle": dash} | changes))


def densities_axis(axis: "Axes", values: Sequence[float]) -> None:
    """Make an axis logarithmic in density, with ticks such as 3 %."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(values) / 1.25, min(max(values) * 1.25, 1.08)
    axis.set_xscale("log")
    axis.set_xlim(low, max(high, low * 1.5))
    round_ones = [scale * digit for scale in (1e-5, 1e-4, 1e-3, 0.01, 0.1) for digit in (1, 2, 3, 5, 7)]
    ticks: list[float] = []
    for tick in [*sorted(set(values)), *round_ones, 1.0]:  # those that were measured go first
        near = (max(tick / other, other / tick) for other in ticks)
        if low <= tick <= high and all(gap > (high / low) ** 0.13 for gap in near):
            ticks.append(tick)
    axis.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: percent(value))
    axis.set_xlabel("density")


def percent(share: float) -> str:
    """Return a share as `3 %`, with at least two significant digits."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.3g} %"


def short(text: str, most: int = 40) -> str:
    """Return a label on one line, cut to `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def listed(names: Iterable[str], most: int = 6, between: str = ", ") -> str:
    """Return names for a sentence, the first few of them."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + rest


def _recolored(text: str, colors: dict[str, str]) -> str:
    def replaced(tag: re.Match[str]) -> str:
        changed = tag[0]
        for old, new in colors.items():
            changed = changed.replace(old, new)
        return changed

    return _TAG.sub(replaced, text)
