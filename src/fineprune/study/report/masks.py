"""Make the map of a model: its matrices as cells of a table, with the mask of each as a picture."""

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fineprune.pruning.anatomy import KINDS, Place, place_of
from fineprune.training.run.mask_snapshot import MatrixSnapshot

LEVELS = 16
"""Shades of a mask's picture; the first is that of nothing kept."""

_INK = (47, 111, 208)  # seen on white and on near black
_TONES = ((0.7, "deep"), (0.52, "middle"))
"""Shades from which on a cell's number is in the color of the paper: everywhere, and on a dark page."""


class Cell(NamedTuple):
    """One matrix in the map."""

    number: int
    """The index of its mask in `Map.masks`."""

    name: str
    density: float
    text: str
    """The density in percent."""

    shade: float
    """The density as a share of the highest one of the map."""

    tone: str
    """Of `_TONES`; empty below them."""


class Line(NamedTuple):
    """A layer, or a matrix outside of layers."""

    label: str
    cells: list[list[Cell]]
    """The cells of each column; usually one, or none."""


class Stack(NamedTuple):
    """An encoder, a decoder, or matrices outside of both."""

    title: str
    columns: list[str]
    lines: list[Line]


class Map(NamedTuple):
    """All matrices of a run."""

    stacks: list[Stack]
    top: float
    """The highest density."""

    masks: list[dict[str, Any]]
    """The values of each matrix for the page's script."""


def map_of(matrices: Sequence[MatrixSnapshot]) -> Map:
    """Return the map, with the masks of its cells."""
    top = max((matrix.density for matrix in matrices), default=0.0)
    stacks: dict[str, dict[tuple[float, str], dict[str, list[Cell]]]] = {}
    for index, matrix in enumerate(matrices):
        place = place_of(matrix.name)
        shade = matrix.density / top if top else 0.0
        text = f"{100 * matrix.density:.1f}"
        tone = next((name for least, name in _TONES if shade >= least), "")
        cell = Cell(index, matrix.name, matrix.density, text, round(shade, 3), tone)
        line, column = _spot(place, matrix.name)
        stacks.setdefault(place.stack, {}).setdefault(line, {}).setdefault(column, []).append(cell)
    parts = [_stack(name, lines) for name, lines in stacks.items()]
    return Map(parts, top, [mask_of(matrix) for matrix in matrices])


def mask_of(matrix: MatrixSnapshot) -> dict[str, Any]:
    """Return one matrix as plain values: its numbers, its picture, the sums at its edges."""
    full = _full(matrix.picture)
    height, width = matrix.picture.shape
    across, down = matrix.shape[1], matrix.shape[0]
    rows, most_rows = strip(matrix.rows, height, across)
    columns, most_columns = strip(matrix.columns, width, down)
    return {
        "name": matrix.name,
        "shape": [down, across],
        "kept": matrix.kept,
        "total": down * across,
        "density": matrix.density,
        "grid": [height, width],
        "full": full / 255,
        "picture": png(matrix.picture, full),
        "rows": rows,
        "columns": columns,
        "most": [most_rows, most_columns],
        "empty": [int((matrix.rows == 0).sum()), int((matrix.columns == 0).sum())],
    }


def png(picture: NDArray[np.uint8], full: int) -> str:
    """Return a picture as a data URI: one ink whose opacity is the density, opaque from `full` (of 255) on.

    On its own it has no paper, so that it suits a light page and a dark one.
    """
    steps = np.ceil(picture.astype(np.float64) * (LEVELS - 1) / full)  # one kept weight is seen
    image = Image.fromarray(np.minimum(steps, LEVELS - 1).astype(np.uint8)).convert("L")
    indexed = Image.frombytes("P", image.size, image.tobytes())
    indexed.putpalette(_INK * LEVELS)
    opacity = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    file = io.BytesIO()
    indexed.save(file, "PNG", optimize=True, bits=4, transparency=opacity)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def strip(counts: NDArray[np.int32], bins: int, length: int) -> tuple[str, float]:
    """Return bars for kept weights by row or column, a path in a box of `bins` x 100, and the top density.

    `length` is the number of weights in a row. The bars begin at the line y = 0, and are as wide as the
    blocks of the picture.
    """
    starts = np.arange(bins) * len(counts) // bins
    sizes = np.diff([*starts, len(counts)]) * length
    density = np.add.reduceat(counts, starts, dtype=np.int64) / sizes
    most = float(density.max())
    heights = np.rint(100 * density / most).astype(int) if most else np.zeros(bins, int)
    path = "".join(f"V{height}H{index}" for index, height in enumerate(heights, 1))
    return f"M0 0{path}V0Z", most


def _full(picture: NDArray[np.uint8]) -> int:
    """Return the value of full ink: almost the densest block, so that few blocks do not pale the rest."""
    return max(1, int(np.ceil(np.percentile(picture, 99.5))))


def _spot(place: Place, name: str) -> tuple[tuple[float, str], str]:
    """Return the line, as layer and label, and the column of a matrix.

    Of a kind that no pattern knows, the column is named after the end of the name.
    """
    last = name.rpartition(".")[2]
    if place.layer is None:
        return (float("inf"), last), place.kind
    return (place.layer, str(place.layer)), last if place.kind == "other" else place.kind


def _stack(name: str, lines: dict[tuple[float, str], dict[str, list[Cell]]]) -> Stack:
    found = dict.fromkeys(column for line in lines.values() for column in line)
    columns = [kind for kind in KINDS if kind in found] + [column for column in found if column not in KINDS]
    made = [Line(key[1], _row(columns, lines[key])) for key in sorted(lines)]
    return Stack(name, columns, made)


def _row(columns: Iterable[str], line: dict[str, list[Cell]]) -> list[list[Cell]]:
    return [line.get(column, []) for column in columns]
