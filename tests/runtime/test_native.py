"""Which libraries are there, and that every mistake is told by name."""

import ctypes
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runtime.engines import make_layer

import fineprune_runtime
from fineprune_runtime import Encoder, EngineError, Linear, Matrix, SparseLinear, native

LEVELS = native.levels()
pytestmark = pytest.mark.skipif(not LEVELS, reason="the engine's libraries were not built")


def floats(values):
    return np.array(values, np.float32)


def linear(positions, values, shape=(2, 3), bias=None, scales=None):
    given = None if positions is None else np.array(positions, np.int64)
    matrix = Matrix(shape, given, floats(values), None if scales is None else floats(scales))
    return Linear(matrix, None if bias is None else floats(bias))


GOOD = linear([0, 5], [1, 2])


def layer(hidden=4, heads=2, head_dim=2, ffn=6):
    return make_layer(np.random.default_rng(0), hidden, heads, head_dim, ffn)


# -- levels and types ----------------------------------------------------------------------------


def test_levels_are_in_order_and_end_with_the_portable_one():
    assert LEVELS[-1] == "portable"
    assert list(LEVELS) == [level for level in native.LEVELS if level in LEVELS]


def test_levels_of_another_kind_of_processor_do_not_run():
    other, runs = ("avx" if platform.machine() == "aarch64" else "neon"), native.library("portable").fp_runs
    assert {runs(level.encode()) for level in native.LEVELS if level.startswith(other)} == {0}


# A debug or sanitizer build has FP_CHECK, and the sanitizer build has bfloat16 on every level.
CHECKED = bool(LEVELS) and native.library("portable").fp_constant(b"FP_CHECKS") == 1
EMULATED = CHECKED and "bfloat16" in native.dtypes("portable")
without_bfloat16 = pytest.mark.skipif(EMULATED, reason="the sanitizer build has bfloat16 on every level")


def test_dtypes():
    for level in LEVELS:
        offered = native.dtypes(level)
        assert {"float32", "int8"} <= set(offered) <= set(native.DTYPES)
        assert ("bfloat16" in offered) == (level in ("amx", "avx512_bf16", "neon_i8mm") or EMULATED)
    assert set(native.dtypes()) == {dtype for level in LEVELS for dtype in native.dtypes(level)}


def test_the_best_level_that_offers_the_type_is_taken():
    for dtype in native.dtypes():
        expected = next(level for level in LEVELS if dtype in native.dtypes(level))
        assert SparseLinear(GOOD, dtype=dtype).level == expected
        encoder = Encoder([layer()], head_dim=2, dtype=dtype)
        assert (encoder.level, encoder.dtype, encoder.threads) == (expected, dtype, 1)


def test_a_level_that_is_not_known():
    for make in (lambda: SparseLinear(GOOD, level="avx3"), lambda: native.dtypes("avx3")):
        with pytest.raises(
            EngineError, match=r"level 'avx3' does not run here; those that do are .*portable"
        ):
            make()


@without_bfloat16
def test_a_type_that_a_level_lacks():
    with pytest.raises(EngineError, match="level 'portable' has no bfloat16; it offers float32, int8"):
        SparseLinear(GOOD, dtype="bfloat16", level="portable")


@without_bfloat16
def test_a_type_that_no_level_here_has(monkeypatch):
    monkeypatch.setattr(native, "levels", lambda: ("portable",))
    with pytest.raises(EngineError, match="no bfloat16 instructions; supported here are float32, int8"):
        SparseLinear(GOOD, dtype="bfloat16")


@pytest.mark.parametrize("level", [None, "portable"])
def test_a_type_that_is_not_known(level):
    for dtype in ("float16", "", None):
        with pytest.raises(EngineError, match=r"is not known; allowed are float32, bfloat16, int8"):
            Encoder([layer()], head_dim=2, dtype=dtype, level=level)


def run_elsewhere(folder, code):
    """What a new Python prints that looks for the libraries in `folder`."""
    import_path = os.pathsep.join(map(str, fineprune_runtime.__path__))
    given = os.environ | {"FINEPRUNE_RUNTIME_LIBRARIES": str(folder)}
    given["PYTHONPATH"] = os.pathsep.join(str(Path(place).parent) for place in import_path.split(os.pathsep))
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = """
import fineprune_runtime as runtime, numpy
print(runtime.levels(), runtime.dtypes())
layer = runtime.Linear(runtime.Matrix.from_dense(numpy.eye(3)), None)
for options in ({}, {"level": "portable"}):
    try:
        runtime.SparseLinear(layer, **options)
    except runtime.EngineError as error:
        print(error)
"""


def test_without_libraries(tmp_path):
    first, *errors = run_elsewhere(tmp_path, ASK).splitlines()
    assert first == "() ()"
    assert "were not built when fineprune-runtime was installed; install it again" in errors[0]
    assert errors[1] == "level 'portable' does not run here; no library of the engine was built"


def test_with_a_library_that_is_none(tmp_path):
    (tmp_path / "libfineprune_portable.so").write_bytes(b"\x7fELF, but no more")
    code = "import fineprune_runtime as runtime\n"
    code += "try:\n runtime.levels()\nexcept runtime.EngineError as error:\n print(error)"
    printed = run_elsewhere(tmp_path, code)
    assert printed.startswith("the engine's library for portable cannot be loaded (")


@without_bfloat16
def test_a_level_that_was_not_built_is_left_out(tmp_path):
    shutil.copy(native._path("portable"), tmp_path)
    assert run_elsewhere(tmp_path, ASK).splitlines()[0] == "('portable',) ('float32', 'int8')"


@pytest.fixture
def fresh():
    """Libraries are loaded, and compared with native.py, once more."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def test_a_library_of_another_version(monkeypatch, fresh):
    monkeypatch.setattr(native, "_VERSION", 99)
    with pytest.raises(EngineError, match="another version; install fineprune-runtime again"):
        native.library("portable")


def test_a_library_from_before_fp_constant(monkeypatch, fresh):
    class Before:
        @staticmethod
        def fp_version():
            return native._VERSION

    monkeypatch.setattr(ctypes, "CDLL", lambda path: Before())
    with pytest.raises(EngineError, match="another version; install fineprune-runtime again"):
        native.library("portable")


class Narrow(ctypes.Structure):
    """fp_settings with a head_dim of 32 bits, and what follows it 4 bytes earlier."""

    _fields_ = tuple(
        (name, ctypes.c_int32 if name == "head_dim" else type_) for name, type_ in native.CSettings._fields_
    )


class Swapped(ctypes.Structure):
    """fp_settings with two fields of one type in another order."""

    _fields_ = (*native.CSettings._fields_[1::-1], *native.CSettings._fields_[2:])


@pytest.mark.parametrize(
    ("name", "value", "difference"),
    [
        ("MOST_ROWS", 2**21, "FP_MOST_ROWS is 1048576 there and 2097152 here"),
        ("MOST_COLUMNS", 2**15, "FP_MOST_COLUMNS is 65536 there and 32768 here"),
        ("MOST_THREADS", 64, "FP_MOST_THREADS is 1024 there and 64 here"),
        ("DTYPES", ("float32", "int8", "bfloat16"), "FP_INT8 is 2 there and 1 here"),
        ("DTYPES", ("float32", "bfloat16", "int8", "int4"), "FP_INT4 is -1 there and 3 here"),
        ("ACTIVATIONS", ("gelu", "relu"), "FP_RELU is 2 there and 1 here"),
        ("_STRUCTURES", {"fp_matrix": native.CSettings}, "fp_matrix is 56 there and 40 here"),
        ("_STRUCTURES", {"fp_settings": Narrow}, r"fp_settings is 40 there and 32 here"),
        ("_STRUCTURES", {"fp_settings": Swapped}, r"fp_settings\.head_dim is 8 there and 0 here"),
    ],
)
def test_a_library_that_was_compiled_with_other_declarations(monkeypatch, fresh, name, value, difference):
    monkeypatch.setattr(native, name, value)
    message = rf"libfineprune_portable\.so: is of another version \({difference}\); install fineprune-runtime"
    with pytest.raises(EngineError, match=message):
        native.library("portable")


def test_every_declaration_is_compared():
    declared = native._declarations()
    assert len(declared) == 40
    for level in LEVELS:
        answers = {name: native.library(level).fp_constant(name.encode()) for name in declared}
        assert answers == declared
        assert native.library(level).fp_constant(b"FP_NO_SUCH_THING") == -1


@pytest.mark.skipif(not CHECKED, reason="needs libraries with FP_CHECK: make sanitize SANITIZED_TESTS=...")
def test_a_check_that_fails_aborts():
    code = "from fineprune_runtime import native; native.library('portable').fp_constant(None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "engine.cpp" in done.stderr
    assert "FP_CHECK(name) failed" in done.stderr


PROGRAM = """
#include "check.hpp"
int main(int count, char **) {
    int evaluated = 0;
    FP_CHECK(++evaluated, count == 1);
    return evaluated;
}
"""


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_checks_are_there_only_where_they_are_asked_for(tmp_path):
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(PROGRAM)
    headers = Path(__file__).parents[2] / "runtime" / "native"

    def run(*flags, argument=()):
        subprocess.run(["c++", "-std=gnu++17", *flags, "-I", headers, source, "-o", program], check=True)
        return subprocess.run([program, *argument], capture_output=True, text=True)

    assert run().returncode == 0  # not even evaluated
    assert run(argument=["more"]).returncode == 0
    assert run("-DFP_CHECKS").returncode == 1
    failed = run("-DFP_CHECKS", argument=["more"])
    assert failed.returncode == -signal.SIGABRT
    assert failed.stderr == f"{source}:5: FP_CHECK(++evaluated, count == 1) failed\n"


def test_a_long_message_is_cut():
    message = ctypes.create_string_buffer(b"\xff" * 16)
    loaded, handle = native.library("portable"), ctypes.c_void_p()
    settings = native.CSettings(0, 1, 0.0, 0, 0, 1)
    assert loaded.fp_encoder_new(ctypes.byref(settings), ctypes.byref(handle), message, 10) == 1
    assert message.raw[:10] == b"hidden is\0"
    assert handle.value is None


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**31 - 1])
def test_threads(threads):
    message = f"threads is {threads}; .*1 to 1024"
    with pytest.raises(EngineError, match=message):
        SparseLinear(GOOD, threads=threads)
    with pytest.raises(EngineError, match=message):
        Encoder([layer()], head_dim=2, threads=threads)


@pytest.mark.parametrize("threads", [1.5, "2", None])
def test_threads_that_are_no_number(threads):
    with pytest.raises(EngineError, match=r"threads is .*; it is a whole number from 1 to 1024"):
        SparseLinear(GOOD, threads=threads)
    with pytest.raises(EngineError, match=r"threads is .*; it is a whole number from 1 to 1024"):
        Encoder([layer()], head_dim=2, threads=threads)


@pytest.mark.parametrize("activation", ["silu", "", None])
def test_activations(activation):
    with pytest.raises(EngineError, match=f"{activation!r} cannot be run; allowed are gelu, gelu_tanh, relu"):
        Encoder([layer()], head_dim=2, activation=activation)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 1, 0.0, 0, 0, 1), "hidden is 0; 1 to 65536 can be run"),
        ((65537, 1, 0.0, 0, 0, 1), "hidden is 65537"),
        ((4, 0, 0.0, 0, 0, 1), "head_dim is 0; 1 to 65536 can be run"),
        ((4, -3, 0.0, 0, 0, 1), "head_dim is -3"),
        ((4, 2**40, 0.0, 0, 0, 1), f"head_dim is {2**40}"),
        ((4, 1, 0.0, 3, 0, 1), "activation 3 is not known"),
        ((4, 1, 0.0, -1, 0, 1), "activation -1 is not known"),
        ((4, 1, 0.0, 0, 3, 1), "dtype 3 is not offered by this library"),
        pytest.param((4, 1, 0.0, 0, 1, 1), "dtype 1 is not offered by this library", marks=without_bfloat16),
        ((4, 1, 0.0, 0, 0, 0), "threads is 0; 1 to 1024 are allowed"),
    ],
)
def test_settings_of_the_c_interface(settings, message):
    handle, given = ctypes.c_void_p(), native.CSettings(*settings)
    with pytest.raises(EngineError, match=message):
        native.call(native.library("portable"), "fp_encoder_new", ctypes.byref(given), ctypes.byref(handle))


def test_no_layers():
    with pytest.raises(EngineError, match="at least one layer"):
        Encoder([], head_dim=1)


def test_head_dim():
    with pytest.raises(EngineError, match="head_dim is 0"):
        Encoder([layer()], head_dim=0)
    with pytest.raises(EngineError, match=r"layer 0, attention output: has 4 inputs, .* whole heads of 3"):
        Encoder([layer()], head_dim=3)


# -- matrices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", native.dtypes())
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (linear([1, 0], [1, 2]), "weight: position 1 is 0 after 1; they rise, and end below 6"),
        (linear([3, 3], [1, 2]), "weight: position 1 is 3 after 3"),
        (linear([-1, 3], [1, 2]), "weight: position 0 is -1 after -1"),
        (linear([0, 6], [1, 2]), "weight: position 1 is 6 after 0; they rise, and end below 6"),
        (linear([2**62], [1]), f"weight: position 0 is {2**62}"),
        (linear([0], [1], shape=(0, 3)), "weight: stores 1 of 0 elements"),
        (linear([0, 1], [1, 2], shape=(1, 1)), "weight: stores 2 of 1 elements"),
        (linear(None, [1, 2]), "weight: stores 2 of 6 elements"),
        (linear([0, 1], [1, math.nan]), "weight: value 1 is not finite"),
        (linear([0, 1], [-math.inf, 1]), "weight: value 0 is not finite"),
        (linear([0], [1], bias=[0, math.inf]), "weight: bias 1 is not finite"),
        (linear([0], [1], scales=[math.nan, 1]), "weight: scale 0 is not finite"),
        (linear([0], [1], bias=[0]), r"an array of shape \(1,\), expected \(2,\)"),
        (linear([0], [1], scales=[1, 1, 1]), r"an array of shape \(3,\), expected \(2,\)"),
        (linear([0], [1, 2]), r"an array of shape \(1,\), expected \(2,\)"),
        (linear([], [], shape=(-1, 3)), "weight: is -1 x 3; at most 1048576 x 65536 can be run"),
        (linear([], [], shape=(3, 65537)), "weight: is 3 x 65537; at most"),
        (linear([], [], shape=(2**20 + 1, 3)), "weight: is 1048577 x 3; at most"),
    ],
)
def test_a_matrix_that_is_wrong(dtype, given, message):
    with pytest.raises(EngineError, match=message):
        SparseLinear(given, dtype=dtype)


def test_the_largest_matrices():
    wide = SparseLinear(linear([], [], shape=(3, 65536)))
    assert wide(np.ones((1, 65536), np.float32)).tolist() == [[0, 0, 0]]
    high = SparseLinear(linear([], [], shape=(2**20, 1)))
    assert high(np.ones((1, 1), np.float32)).shape == (1, 2**20)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"query": (4, 3)}, r"query, key and value have \[3, 4, 4\] inputs"),
        ({"query": (2, 4)}, "layer 0, query, key and value: is 10 x 4, expected 12 x 4"),
        ({"query": (4, 5), "key": (4, 5), "value": (4, 5)}, "value: is 12 x 5, expected 12 x 4"),
        ({"attention_output": (4, 6)}, "query, key and value: is 12 x 4, expected 18 x 4"),
        ({"ffn_in": (5, 4)}, "layer 0, feed-forward in: is 5 x 4, expected 6 x 4"),
        ({"ffn_in": (6, 3)}, "layer 0, feed-forward in: is 6 x 3, expected 6 x 4"),
        ({"ffn_out": (3, 6)}, "layer 0, feed-forward out: is 3 x 6, expected 4 x 6"),
    ],
)
def test_matrices_that_do_not_fit(parts, message):
    full = {
        name: Linear(Matrix.from_dense(np.ones(shape)), np.zeros(shape[0], np.float32))
        for name, shape in parts.items()
    }
    with pytest.raises(EngineError, match=message):
        Encoder([layer()._replace(**full)], head_dim=2)


def test_the_layer_that_is_wrong_is_named():
    wider = layer(hidden=5)
    heads = {"query": wider.query, "key": wider.key, "value": wider.value}
    with pytest.raises(EngineError, match="layer 1, query, key and value: is 12 x 5, expected 12 x 4"):
        Encoder([layer(), layer()._replace(**heads)], head_dim=2)
    with pytest.raises(EngineError, match="layer 2, feed-forward in: is 6 x 5, expected 6 x 4"):
        Encoder([layer(), layer(), layer()._replace(ffn_in=wider.ffn_in)], head_dim=2)


@pytest.mark.parametrize("norm", ["attention_norm", "output_norm"])
@pytest.mark.parametrize("field", ["weight", "bias"])
def test_norms(norm, field):
    whole = layer()
    for value, message in (
        ([1, 2, 3, math.nan], "layer 0, norm: value 3 is not finite"),
        ([1, 2, 3], r"an array of shape \(3,\), expected \(4,\)"),
    ):
        wrong = getattr(whole, norm)._replace(**{field: floats(value)})
        with pytest.raises(EngineError, match=message):
            Encoder([whole._replace(**{norm: wrong})], head_dim=2)
