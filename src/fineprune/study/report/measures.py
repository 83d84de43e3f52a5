"""What single files of a run say: how far it came, how small it is, how fast, and its dense counterpart."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from fineprune.study.folder import RunFolder
from fineprune.study.report.words import number_of

ENGINE = "engine "
"""What the names of the engine's lines in bench.json begin with; the rest is the type it computes in."""

_TIMING = ("ratio", "low", "high", "milliseconds")


class Size(NamedTuple):
    """Bytes of the model's weights."""

    packed: dict[str, int]
    """By the type of the values."""

    dense: int


class Speed(NamedTuple):
    """The engine's fastest line of bench.json."""

    dtype: str
    ratio: float
    low: float
    high: float
    milliseconds: float
    where: str
    """What it was measured on."""


class Dense(NamedTuple):
    """The dense run that a run is held against."""

    path: Path
    score: float
    scores: dict[str, Any]


def size_of(run: RunFolder) -> Size | None:
    """None where the run does not say it."""
    results = run.results or {}
    packed, dense = results.get("packed_bytes"), number_of(results.get("dense_bytes"))
    if not isinstance(packed, dict) or not dense:
        return None
    known = {str(kind): int(size) for kind, size in packed.items() if number_of(size)}
    return Size(known, int(dense)) if "float32" in known else None


def speed_of(run: RunFolder) -> Speed | None:
    """None where the engine was not measured, its answers were wrong, or the weights have changed since."""
    bench = run.bench or {}
    try:
        files = list((run.path / "model").glob("*.safetensors"))
        if files and bench["file_bytes"] != sum(file.stat().st_size for file in files):
            return None
        machine = bench["machine"]
        where = (
            f"{bench['batch']} × {bench['length']} tokens, "
            f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}, {machine['processor']}"
        )
        found = []
        for row in bench["rows"]:
            if row["peer"].startswith(ENGINE) and row["model"] is None and not row["wrong"]:
                ratio, low, high, time = (float(row["timing"][name]) for name in _TIMING)
                found.append(Speed(row["peer"].removeprefix(ENGINE), ratio, low, high, time, where))
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        return None
    return max(found, key=lambda speed: speed.ratio, default=None)


def dense_beside(run: RunFolder) -> Dense | None:
    """The dense run of the same data in the folder above; of several that of the same model and seed."""
    found = []
    for path in sorted(run.path.resolve().parent.glob("*/results.json")):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            recipe = results["recipe"]
            plain = recipe["pruning"] is None and recipe.get("distillation") is None
            if plain and recipe["task"] == run.recipe.get("task") and results["metric"] == _metric(run):
                unlike = (recipe["model"] != run.recipe.get("model"), _seed(recipe) != _seed(run.recipe))
                found.append((unlike, Dense(path.parent, float(results["score"]), dict(results["scores"]))))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # another run's files are not what this page is about
    return min(found, key=lambda entry: entry[0])[1] if found else None


def progress(run: RunFolder) -> str:
    """How far an unfinished run came."""
    steps = [line["step"] for line in run.lines if number_of(line.get("step")) is not None]
    if not steps:
        return "no step is logged"
    training = run.recipe.get("training")
    planned = number_of(training.get("steps")) if isinstance(training, dict) else None
    return f"step {max(steps):,}" + (f" of {planned:,}" if planned else "")


def _metric(run: RunFolder) -> Any:
    return None if run.results is None else run.results["metric"]


def _seed(recipe: dict[str, Any]) -> Any:
    return recipe["training"]["seed"]
