"""The compiled engine, through ctypes: one library for each instruction level (native/engine.h).

ctypes releases the GIL for the length of a call. A library is loaded when it is first asked for.
"""

import ctypes
import functools
import os
import sys
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_void_p
from pathlib import Path
from typing import Any

from fineprune_runtime.errors import EngineError

LEVELS = ("avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable")  # best first
DTYPES = ("float32", "bfloat16", "int8")  # the number of a dtype is its index
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
MOST_ROWS, MOST_COLUMNS, MOST_THREADS = 2**20, 2**16, 1024  # MOST_COLUMNS also limits head_dim and hidden
_VERSION = 1
_MESSAGE = 512


class CMatrix(ctypes.Structure):
    """fp_matrix."""

    _fields_ = (
        ("rows", c_int64),
        ("columns", c_int64),
        ("kept", c_int64),
        ("positions", c_void_p),
        ("values", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
    )


class CLayer(ctypes.Structure):
    """fp_layer."""

    _fields_ = (
        ("qkv", CMatrix),
        ("attention_output", CMatrix),
        ("ffn_in", CMatrix),
        ("ffn_out", CMatrix),
        ("attention_norm_weight", c_void_p),
        ("attention_norm_bias", c_void_p),
        ("output_norm_weight", c_void_p),
        ("output_norm_bias", c_void_p),
    )


class CSettings(ctypes.Structure):
    """fp_settings."""

    _fields_ = (
        ("hidden", c_int64),
        ("head_dim", c_int64),
        ("epsilon", c_float),
        ("activation", c_int32),
        ("dtype", c_int32),
        ("threads", c_int32),
    )


_STRUCTURES = {"fp_matrix": CMatrix, "fp_layer": CLayer, "fp_settings": CSettings}
_FLOATS = POINTER(c_float)
_FAILS = {  # these end in (message, size), and return 0 when they succeed
    "fp_encoder_new": (POINTER(CSettings), POINTER(c_void_p)),
    "fp_encoder_add": (c_void_p, POINTER(CLayer)),
    "fp_encoder_run": (c_void_p, _FLOATS, POINTER(c_uint8), c_int64, c_int64, _FLOATS),
    "fp_linear_new": (POINTER(CMatrix), c_int32, c_int32, POINTER(c_void_p)),
    "fp_linear_run": (c_void_p, _FLOATS, c_int64, _FLOATS),
    "fp_linear_time": (c_void_p, c_int64, POINTER(c_double), POINTER(c_int64)),
}


def levels() -> tuple[str, ...]:
    """The instruction levels that were built and run here, best first; () where nothing was built."""
    if not _path("portable").is_file():
        return ()
    runs = library("portable").fp_runs
    return tuple(level for level in LEVELS if _path(level).is_file() and runs(level.encode()))


def dtypes(level: str | None = None) -> tuple[str, ...]:
    """The dtypes that a level offers; without one, those that any level of this processor offers."""
    asked = levels() if level is None else (checked_level(level),)
    offered = {
        dtype for name in asked for number, dtype in enumerate(DTYPES) if library(name).fp_offers(number)
    }
    return tuple(dtype for dtype in DTYPES if dtype in offered)


def checked_level(level: str) -> str:
    """`level`, if it can be used here; raises `EngineError` naming what can."""
    if level not in levels():
        raise EngineError(f"level {level!r} does not run here; {_here()}")
    return level


def best_level(dtype: str) -> str:
    """The best level of this processor that offers a dtype; raises `EngineError` naming what there is."""
    if dtype not in DTYPES:
        raise EngineError(f"dtype {dtype!r} is not known; allowed are {', '.join(DTYPES)}")
    if not levels():
        raise EngineError(
            "the sparse engine's libraries are not there: they were not built when fineprune-runtime was "
            "installed; install it again where there is a C++ compiler, or take its wheel"
        )
    for level in levels():
        if dtype in dtypes(level):
            return level
    raise EngineError(f"this processor has no {dtype} instructions; supported here are {', '.join(dtypes())}")


def call(library: Any, name: str, *arguments: Any) -> None:
    """Call a function that can fail; raises `EngineError` with its message."""
    message = ctypes.create_string_buffer(_MESSAGE)
    if getattr(library, name)(*arguments, message, _MESSAGE):
        raise EngineError(message.value.decode(errors="replace"))


@functools.cache
def library(level: str) -> Any:
    """Return the library of a level with its functions declared.

    Raises `EngineError` if it cannot be loaded or was compiled with other declarations than those here.
    """
    try:
        loaded = ctypes.CDLL(str(_path(level)))
    except OSError as error:
        raise EngineError(f"the engine's library for {level} cannot be loaded ({error})") from error
    _check_declarations(loaded, _path(level))
    for name, arguments in _FAILS.items():
        function = getattr(loaded, name)
        function.argtypes = (*arguments, c_char_p, c_size_t)
        function.restype = ctypes.c_int
    for kind in ("encoder", "linear"):
        getattr(loaded, f"fp_{kind}_bytes").argtypes = (c_void_p,)
        getattr(loaded, f"fp_{kind}_bytes").restype = c_int64
        getattr(loaded, f"fp_{kind}_free").argtypes = (c_void_p,)
        getattr(loaded, f"fp_{kind}_free").restype = None
    loaded.fp_runs.argtypes = (c_char_p,)
    loaded.fp_offers.argtypes = (c_int32,)
    return loaded


def _check_declarations(loaded: Any, path: Path) -> None:
    """Raise `EngineError` if a library's structures, limits or enums are not those of this module."""
    if loaded.fp_version() != _VERSION or not hasattr(loaded, "fp_constant"):
        raise EngineError(f"{path}: is of another version; install fineprune-runtime again")
    loaded.fp_constant.argtypes, loaded.fp_constant.restype = (c_char_p,), c_int64
    for name, value in _declarations().items():
        compiled = loaded.fp_constant(name.encode())
        if compiled != value:
            raise EngineError(
                f"{path}: is of another version ({name} is {compiled} there and {value} here); "
                "install fineprune-runtime again"
            )


def _declarations() -> dict[str, int]:
    """Return what `fp_constant` has to answer: sizes and offsets of structures, limits, members of enums."""
    numbers = {
        "FP_MOST_ROWS": MOST_ROWS,
        "FP_MOST_COLUMNS": MOST_COLUMNS,
        "FP_MOST_THREADS": MOST_THREADS,
    }
    for members in (DTYPES, ACTIVATIONS):
        numbers |= {f"FP_{member.upper()}": number for number, member in enumerate(members)}
    for name, structure in _STRUCTURES.items():
        numbers[name] = ctypes.sizeof(structure)
        for field, *_ in structure._fields_:
            numbers[f"{name}.{field}"] = getattr(structure, field).offset
    return numbers


def _path(level: str) -> Path:
    # Elsewhere for tests of libraries that were built in another way, with a sanitizer for one.
    folder = os.environ.get("FINEPRUNE_RUNTIME_LIBRARIES")
    if folder:
        return Path(folder) / f"libfineprune_{level}.so"
    # An editable install keeps the libraries beside its own metadata: look wherever the package's path leads.
    folders = sys.modules["fineprune_runtime"].__path__
    places = [Path(place) / "_native" / f"libfineprune_{level}.so" for place in folders]
    return next((place for place in places if place.is_file()), places[0])


def _here() -> str:
    return f"those that do are {', '.join(levels())}" if levels() else "no library of the engine was built"
