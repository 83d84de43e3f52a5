"""Store the density above which a dense model is as fast as the engine's sparse one."""

from typing import NamedTuple

from fineprune_runtime import levels


class BreakEven(NamedTuple):
    """Densities of equal speed; 1: sparse is faster at every density that was measured."""

    torch: float
    """The engine is as fast as torch with dense float32 weights."""
    openvino_int8: float
    """The engine is as fast as OpenVINO with dense int8 weights, what people would take instead."""


# `python benchmarks/engine.py --break-even`: an encoder of BERT-base's shape, 1 x 128 tokens, one thread,
# random masks of the same density in each matrix (docs/engine.md). On an AMD core with AVX-512, VNNI and
# bfloat16:
_VECTORS = {
    "float32": BreakEven(torch=1.0, openvino_int8=0.12),
    "bfloat16": BreakEven(torch=1.0, openvino_int8=0.20),
    "int8": BreakEven(torch=1.0, openvino_int8=0.32),
}
# On an Intel core with AMX, which speeds up dense models. In int8 the two are equal above the limit.
_TILES = {
    "float32": BreakEven(torch=0.57, openvino_int8=0.08),
    "bfloat16": BreakEven(torch=1.0, openvino_int8=0.05),
    "int8": BreakEven(torch=1.0, openvino_int8=0.10),
}


def limits() -> dict[str, BreakEven]:
    """Return the densities of equal speed of each dtype, on the kind of processor that this one is."""
    return _TILES if "amx" in levels() else _VECTORS


_RIVAL = "(dense: OpenVINO int8; dense torch is slower at these densities)"


def faster(density: float) -> dict[str, bool]:
    """Return, for each dtype of the engine, whether it beats OpenVINO's dense int8 at this density."""
    return {dtype: density < min(each) for dtype, each in limits().items()}


def advice(density: float) -> str:
    """Return one line for the user about the engine's speed at this density."""
    answers = faster(density)
    below = {dtype: f"{dtype} below {min(each):.0%}" for dtype, each in limits().items()}
    yes = [below[dtype] for dtype, is_faster in answers.items() if is_faster]
    no = [below[dtype] for dtype, is_faster in answers.items() if not is_faster]
    if not no:
        said = f"the engine is faster than a dense model at this density: {', '.join(yes)}"
    elif not yes:
        said = f"the engine is no faster than a dense model at this density; it is with {', '.join(no)}"
    else:
        said = f"the engine is faster than a dense model with {', '.join(yes)}, not with {', '.join(no)}"
    return f"{said} {_RIVAL}"
