"""Read the results, size and speed of a run from its files, in one place for all callers."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._messages import one_line
from fineprune._validation import is_number, shown
from fineprune.errors import FinepruneError
from fineprune.inference.bench import BENCH
from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import read_json

ENGINE = "engine "
"""Prefix of the names of the engine's peers; the rest is the type it computes in."""

_LENGTH = 128  # tokens of the text whose operations count, as in `fineprune.costs`
_NUMBERS = ("score", "density", "kept", "total", "parameters", "steps", "seconds")
_SECTIONS = ("model", "task", "pruning", "distillation")  # of a recipe; each may be missing
_REMEDY = "delete it and run again with --resume, which trains anew, or take the folder model alone"


class PeerTiming(NamedTuple):
    """One peer's time, with the input and the machine of the measurement."""

    peer: str
    milliseconds: float
    ratio: float
    """Times the speed of torch with the same weights."""

    low: float
    high: float
    """The ratio's quartiles."""

    batch: int
    length: int
    threads: int
    processor: str

    @property
    def where(self) -> str:
        """The input and the machine; only times with the same ones are compared."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.batch} × {self.length} tokens, {threads}, {self.processor}"


class Size(NamedTuple):
    """Bytes of a model's weights."""

    packed: dict[str, int]
    """As `fineprune compact` writes them, by the type of the values."""

    dense: int


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of a results.json that has all fields that its readers use.

    Raises:
        FileNotFoundError: there is no such file.
        FinepruneError: it cannot be read, or is something else.
    """
    try:
        results = read_json(path)
        wrong = _wrong_field(results)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except OSError as error:
        raise FinepruneError(f"{path}: cannot be read ({error.strerror or error})") from error
    except EngineError as error:
        raise FinepruneError(f"{one_line(error)}; {_REMEDY}") from error
    if wrong is not None:
        raise FinepruneError(f"{path}: not the results of a run ({wrong}); {_REMEDY}")
    return results  # type: ignore[no-any-return]


def _wrong_field(results: Any) -> str | None:
    """Return the first field that is missing or of another kind, with its value; None if all are right."""
    if not isinstance(results, dict):
        return f"a mapping is expected, got {shown(results)}"
    checks: dict[str, Callable[[Any], bool]] = dict.fromkeys(_NUMBERS, is_number) | {
        "metric": lambda value: isinstance(value, str),
        "scores": _are_numbers,
        "examples": lambda value: value is None or _are_numbers(value),
        "warnings": lambda value: isinstance(value, list | None),
        "packed_bytes": lambda value: isinstance(value, dict | None),
        "recipe": _is_recipe,
    }
    wrong = (name for name, fits in checks.items() if not fits(results.get(name)))
    return next((f"{name}: {shown(results.get(name))}" for name in wrong), None)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(map(is_number, values.values()))


def _is_recipe(recipe: Any) -> bool:
    earlier = recipe.get("earlier_densities") if isinstance(recipe, dict) else None
    return (
        isinstance(recipe, dict)
        and (earlier is None or (isinstance(earlier, list) and all(map(is_number, earlier))))
        and isinstance(recipe.get("training"), dict)
        and all(isinstance(recipe.get(name), dict | None) for name in _SECTIONS)
    )


def timings_of(bench: Any, file_bytes: int | None) -> tuple[list[PeerTiming], str | None]:
    """Return the times in a bench.json whose answers were right; without any, the reason as well.

    The file is stale if the weights no longer have the size that was timed. `file_bytes` is that size now;
    None skips the comparison, where the weights are not available.
    """
    try:
        if file_bytes is not None and bench["file_bytes"] != file_bytes:
            return [], f"{BENCH} is of other weights"
        machine = bench["machine"]
        about = (
            int(bench["batch"]),
            int(bench["length"]),
            int(machine["threads"]),
            str(machine["processor"]),
        )
        rows = [
            PeerTiming(str(row["peer"]), *_numbers(row["timing"]), *about)
            for row in bench["rows"]
            if row["model"] is None and not row["wrong"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        return [], f"{BENCH} cannot be read: {one_line(error)}"
    return rows, None if rows else f"{BENCH} has no right answer"


def _numbers(timing: Any) -> tuple[float, float, float, float]:
    one, ratio, low, high = (float(timing[name]) for name in ("milliseconds", "ratio", "low", "high"))
    if not all(map(math.isfinite, (one, ratio, low, high))):
        raise ValueError("a time that is not a finite number")
    return one, ratio, low, high


def fastest(rows: Iterable[PeerTiming]) -> PeerTiming | None:
    """Return the engine's row with the lowest time; None without any."""
    engine = (row for row in rows if row.peer.startswith(ENGINE))
    return min(engine, key=lambda row: row.milliseconds, default=None)


def weight_bytes(model: Path) -> int | None:
    """Return the bytes of the weights in a model folder; None if there are none."""
    files = list(model.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) if files else None


def packed_of(results: Mapping[str, Any]) -> dict[str, int]:
    """Return the packed bytes in the results, by the type of the values; older versions have none."""
    stored = results.get("packed_bytes")
    sizes = stored.items() if isinstance(stored, dict) else ()
    return {str(name): size for name, size in sizes if type(size) is int and size > 0}


def size_of(results: Mapping[str, Any] | None) -> Size | None:
    """Return the packed and the dense bytes; None if the results lack one of them."""
    packed, dense = packed_of(results or {}), (results or {}).get("dense_bytes")
    return Size(packed, dense) if "float32" in packed and type(dense) is int and dense > 0 else None


def gigaflops_of(results: Mapping[str, Any], config: Mapping[str, Any]) -> float | None:
    """Return the billions of floating-point operations of a text of 128 tokens, without those by zeros.

    Of older results, which do not say them, they follow from the weights and the model's configuration.

    Args:
        results: of the run.
        config: of its model.
    """
    told, shrunk = results.get("flops"), results.get("shrunk")
    if isinstance(told, dict) and is_number(told.get("nonzero")):
        return float(told["nonzero"]) / 1e9
    if isinstance(shrunk, dict) and shrunk.get("flops"):
        return float(shrunk["flops"][1]) / 1e9
    width, layers = config.get("hidden_size"), config.get("num_hidden_layers")
    if results.get("pruned") is not None or not isinstance(width, int) or not isinstance(layers, int):
        return None
    return 2 * (_LENGTH * int(results["kept"]) + 2 * _LENGTH**2 * width * layers) / 1e9


def parameters_left(results: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many parameters of the complete model remain, and how many it had before pruning."""
    pruned = results.get("pruned")  # of a refined run, whose own parameters are those of the smaller model
    before = pruned.get("parameters") if isinstance(pruned, dict) else None
    every = int(before if before is not None and is_number(before) else results["parameters"])
    return int(every - results["total"] + results["kept"]), every
