"""Pruned transformers answer fast on a CPU: the sparse engine, on numpy alone."""

import importlib
from typing import TYPE_CHECKING, Any

from fineprune_runtime.errors import EngineError

if TYPE_CHECKING:
    from fineprune_runtime.answers import AnswerRules
    from fineprune_runtime.engine import Encoder, SparseLinear
    from fineprune_runtime.layers import Layer, Linear, Matrix, Norm
    from fineprune_runtime.loading import load
    from fineprune_runtime.native import dtypes, levels

__version__ = "0.1.0"

__all__ = [
    "AnswerRules",
    "Encoder",
    "EngineError",
    "Layer",
    "Linear",
    "Matrix",
    "Norm",
    "SparseLinear",
    "dtypes",
    "levels",
    "load",
]

# Imported when first used: fineprune's command line reads small modules of this package, and starts
# without numpy.
_LAZY = {
    "AnswerRules": "answers",
    "Encoder": "engine",
    "Layer": "layers",
    "Linear": "layers",
    "Matrix": "layers",
    "Norm": "layers",
    "SparseLinear": "engine",
    "dtypes": "native",
    "levels": "native",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fineprune_runtime' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fineprune_runtime.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
