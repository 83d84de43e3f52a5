"""Call the compiled engine through ctypes: one library for each instruction level (native/engine.h).

ctypes releases the GIL during a call. A library is loaded when it is first used.
"""

import ctypes
import functools
import os
import sys
import threading
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from fineprune_runtime.errors import EngineError

LEVELS = (  # best first
    "amx",
    "avx512_bf16",
    "avx512_vnni",
    "avx512",
    "avx2",
    "neon_i8mm",
    "neon_dot",
    "portable",
)
DTYPES = ("float32", "bfloat16", "int8")  # the number of a dtype is its index
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
MOST_ROWS, MOST_COLUMNS, MOST_THREADS = 2**20, 2**16, 1024  # MOST_COLUMNS also limits head_dim and hidden
_VERSION = 3
_MESSAGE = 512
_local = threading.local()


class CMatrix(ctypes.Structure):
    """The structure fp_matrix."""

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
    """The structure fp_layer."""

    _fields_ = (
        ("qkv", CMatrix),
        ("attention_output", CMatrix),
        ("ffn_in", CMatrix),
        ("ffn_out", CMatrix),
        ("attention_norm_weight", c_void_p),
        ("attention_norm_bias", c_void_p),
        ("output_norm_weight", c_void_p),
        ("output_norm_bias", c_void_p),
        ("bias_rows", c_void_p),
        ("ffn_gate", c_void_p),
        ("rotary", c_void_p),
        ("window", c_int64),
        ("position_keys", c_void_p),
        ("position_queries", c_void_p),
    )


class CSettings(ctypes.Structure):
    """The structure fp_settings."""

    _fields_ = (
        ("hidden", c_int64),
        ("head_dim", c_int64),
        ("epsilon", c_float),
        ("activation", c_int32),
        ("dtype", c_int32),
        ("threads", c_int32),
        ("pre_norm", c_int32),
    )


_STRUCTURES = {"fp_matrix": CMatrix, "fp_layer": CLayer, "fp_settings": CSettings}
_FAILS = {  # the last two parameters are (message, size); they return 0 on success
    "fp_encoder_new": (POINTER(CSettings), POINTER(c_void_p)),
    "fp_encoder_set_bias": (c_void_p, c_int64, c_int64, c_void_p),
    "fp_encoder_set_distances": (c_void_p, c_int64, c_int64, c_void_p),
    "fp_encoder_add": (c_void_p, POINTER(CLayer)),
    "fp_encoder_run": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p),
    "fp_linear_new": (POINTER(CMatrix), c_int32, c_int32, POINTER(c_void_p)),
    "fp_linear_run": (c_void_p, c_void_p, c_int64, c_void_p),
    "fp_linear_time": (c_void_p, c_int64, POINTER(c_double), POINTER(c_int64)),
}


def levels() -> tuple[str, ...]:
    """Return the instruction levels that were built and run here, best first; () if no library was built."""
    if not _path("portable").is_file():
        return ()
    runs = library("portable").fp_runs
    return tuple(level for level in LEVELS if _path(level).is_file() and runs(level.encode()))


def dtypes(level: str | None = None) -> tuple[str, ...]:
    """Return the dtypes that a level offers, or without a level those that any level here offers."""
    names = levels() if level is None else (checked_level(level),)
    offered = {
        dtype for name in names for number, dtype in enumerate(DTYPES) if library(name).fp_offers(number)
    }
    return tuple(dtype for dtype in DTYPES if dtype in offered)


def checked_level(level: str) -> str:
    """Return `level` if it can be used here.

    Raises:
        EngineError: it cannot; the message names the levels that can.
    """
    if level not in levels():
        raise EngineError(f"level {level!r} does not run here; {_here()}")
    return level


def best_level(dtype: str) -> str:
    """Return the best level of this processor that offers a dtype.

    Raises:
        EngineError: no level offers it; the message names the dtypes that can be used.
    """
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
    """Call a function of a library, and raise `EngineError` with its message if it fails."""
    message = getattr(_local, "message", None)
    if message is None:  # making one takes as long as a small call
        message = _local.message = ctypes.create_string_buffer(_MESSAGE)
    if getattr(library, name)(*arguments, message, _MESSAGE):
        raise EngineError(message.value.decode(errors="replace"))


@functools.cache
def library(level: str) -> Any:
    """Return the library of a level with its functions declared.

    Raises:
        EngineError: it cannot be loaded, or was compiled with other declarations than those here.
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
    """Return what `fp_constant` must return: sizes and offsets of structures, limits, members of enums."""
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
    # For tests of libraries that were built in another way, such as with a sanitizer.
    folder = os.environ.get("FINEPRUNE_RUNTIME_LIBRARIES")
    if folder:
        return Path(folder) / f"libfineprune_{level}.so"
    # An editable install keeps the libraries beside its own metadata: search the whole path of the package.
    folders = sys.modules["fineprune_runtime"].__path__
    files = [Path(folder) / "_native" / f"libfineprune_{level}.so" for folder in folders]
    return next((file for file in files if file.is_file()), files[0])


def _here() -> str:
    return f"those that do are {', '.join(levels())}" if levels() else "no library of the engine was built"
