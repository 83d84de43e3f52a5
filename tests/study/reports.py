"""Run folders made up for the page, and the page read back."""

import base64
import io
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from fineprune.training.run.mask_snapshot import SIDE, MatrixSnapshot, Record

_KINDS = {
    "attention.self.query": (1, 1),
    "attention.self.key": (1, 1),
    "attention.self.value": (1, 1),
    "attention.output.dense": (1, 1),
    "intermediate.dense": (4, 1),
    "output.dense": (1, 4),
}


def make_matrix(name: str, mask: np.ndarray) -> MatrixSnapshot:
    """The record of a mask: pictures are blocks of equal size here."""
    rows, columns = mask.shape
    height, width = min(SIDE, rows), min(SIDE, columns)
    blocks = mask.reshape(height, rows // height, width, columns // width).mean((1, 3))
    sums = [mask.sum(axis, dtype=np.int32) for axis in (1, 0)]
    return MatrixSnapshot(name, mask.shape, *sums, np.ceil(255 * blocks).astype(np.uint8))


def make_record(hidden: int, layers: int, density: float, seed: int = 0, sample: int = 200) -> Record:
    """That of a BERT whose masks are random, denser in its first layers."""
    draw = np.random.default_rng(seed)
    matrices = []
    for layer in range(layers):
        share = density * 2 * (layers - layer) / (layers + 1)
        for kind, (down, across) in _KINDS.items():
            mask = draw.random((down * hidden, across * hidden), np.float32) < share
            matrices.append(make_matrix(f"bert.encoder.layer.{layer}.{kind}", mask))
    before = draw.normal(0, 0.05, sample).astype(np.float32)
    after = (before + draw.normal(0, 0.01, sample)).astype(np.float32)
    counts, edges = np.histogram(after, 20)
    kept = np.arange(sample) % 7 == 0
    score = draw.normal(0, 1, sample).astype(np.float32)
    return Record(tuple(matrices), edges.astype(np.float32), counts, before, after, kept, score)


def make_run(
    folder: Path,
    method: str = "movement",
    density: float = 0.1,
    score: float = 0.78125,
    seed: int = 0,
    record: Record | None = None,
    results: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
    model: str = "tiny",
) -> Path:
    """A finished run; `results` are values that replace those of its results.json."""
    pruning = None if method == "dense" else {"method": method, "density": density, "scope": None}
    recipe = {
        "model": {"name": model},
        "task": task or {"kind": "classification", "labels": ["bad", "good"]},
        "training": {"steps": 40, "seed": seed},
        "pruning": pruning,
        "distillation": None,
    }
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [
        {"step": step, "loss": 1 / step, "density": 1 - 0.02 * step, "threshold": 0.1, "mask_changed": 0.01}
        for step in range(10, 50, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if record is not None and pruning:
        record.save(folder)
    kept = sum(matrix.kept for matrix in record.matrices) if record is not None and pruning else 10
    total = sum(np.prod(matrix.shape) for matrix in record.matrices) if record is not None else 100
    values = {
        "metric": "accuracy",
        "score": score,
        "scores": {"loss": 0.4375, "accuracy": score},
        "density": kept / int(total) if pruning else 1.0,
        "kept": kept if pruning else int(total),
        "total": int(total),
        "parameters": 2 * int(total),
        "steps": 40,
        "seconds": 1.5,
        "examples": {"train": 1234},
        "recipe": recipe,
        "environment": {"torch": "2.0"},
        "packed_bytes": {"float32": 3_100_000, "float16": 2_000_000, "int8": 1_500_000},
        "dense_bytes": 12_400_000,
    } | (results or {})
    (folder / "results.json").write_text(json.dumps(values))
    return folder


def make_bench(folder: Path, ratios: dict[str, float], wrong: Sequence[str] = ()) -> None:
    """bench.json with those lines, of one thread."""
    rows = [
        {
            "peer": peer,
            "model": None,
            "timing": {"milliseconds": 20 / ratio, "ratio": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio},
            "error": 0.0,
            "wrong": peer in wrong,
        }
        for peer, ratio in ratios.items()
    ]
    machine = {"processor": "Some Processor 3", "threads": 1}
    bench = {"batch": 1, "length": 128, "file_bytes": 5, "machine": machine, "rows": rows}
    (folder / "bench.json").write_text(json.dumps(bench))


class Element(NamedTuple):
    """A tag, its attributes, and the text inside."""

    tag: str
    attributes: dict[str, str | None]
    texts: list[str]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


class Page(HTMLParser):
    """What is on a page, as a browser reads it."""

    _VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in self._VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self._open.pop().tag == tag

    def handle_data(self, data):
        for element in self._open:
            element.texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """The elements of a tag with those attributes; data_name stands for data-name."""
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [
            element
            for element in self.elements
            if element.tag == tag and wanted.items() <= element.attributes.items()
        ]

    @property
    def text(self) -> str:
        """What is read on it: neither style nor script."""
        hidden = {id(element) for element in self.elements if element.tag in ("style", "script", "head")}
        body = next(element for element in self.elements if element.tag == "body")
        said = body.text
        for element in self.elements:
            if id(element) in hidden and element.tag == "script":
                said = said.replace(element.text, "")
        return said

    def table(self, caption: str) -> list[list[Element]]:
        """The lines of the table with that caption, each a list of cells."""
        position = next(
            index
            for index, element in enumerate(self.elements)
            if element.tag == "caption" and element.text == caption
        )
        lines: list[list[Element]] = []
        for element in self.elements[position + 1 :]:
            if element.tag in ("table", "section", "details"):
                break
            if element.tag == "tr":
                lines.append([])
            elif element.tag in ("th", "td") and lines:
                lines[-1].append(element)
        return lines[1:]

    @property
    def masks(self) -> list[list[dict[str, Any]]]:
        """What the script has of each map."""
        (script,) = self.all("script", id="masks")
        return json.loads("".join(script.texts))


def value(page: Page, name: str) -> Any:
    """The number of a tile in full; None where it has none."""
    (element,) = page.all("dd", data_name=name)
    return json.loads(element.attributes["data-value"]) if "data-value" in element.attributes else None


def said(page: Page, name: str) -> str:
    """The whole tile of a number."""
    tiles = [element.text for element in page.all("div")]
    (element,) = page.all("dd", data_name=name)
    return next(text for text in tiles if element.text in text and text.startswith(tile_name(page, name)))


def tile_name(page: Page, name: str) -> str:
    """Its label."""
    position = page.elements.index(page.all("dd", data_name=name)[0])
    return page.elements[position - 1].text


def opened(uri: str) -> Any:
    """The picture of a data URI."""
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
