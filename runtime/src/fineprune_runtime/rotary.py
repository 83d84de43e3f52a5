"""What each layer of ModernBERT does by position: rotate queries and keys, and see near tokens only."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.architectures import settings, whole
from fineprune_runtime.errors import EngineError

# The settings of each kind of layer in config.json of older versions, and their defaults.
_BASES = {
    "full_attention": ("global_rope_theta", 160_000.0),
    "sliding_attention": ("local_rope_theta", 10_000.0),
}


class Rotation(NamedTuple):
    """`rotary` and `window` of a `Layer`."""

    frequencies: NDArray[np.float32] | None = None
    window: int | None = None


def rotations(config: Mapping[str, Any], layers: int) -> Callable[[int], Rotation]:
    """Return a function from a layer's number to its rotation; without any, of one that does nothing.

    Nothing is as long as the number of layers, which a forged config.json can make absurd.

    Raises:
        EngineError: config.json asks for another kind of rotation, or has an invalid value.
    """
    if config["model_type"] != "modernbert":
        return lambda index: Rotation()
    size, window = settings(config)["head_dim"], whole(config, "local_attention", 128) // 2
    known = {
        "full_attention": Rotation(_frequencies(config, "full_attention", size)),
        "sliding_attention": Rotation(_frequencies(config, "sliding_attention", size), window),
    }
    kinds = config.get("layer_types")
    if kinds is None:
        every = whole(config, "global_attn_every_n_layers", 3)
        return lambda index: known["sliding_attention" if index % every else "full_attention"]
    names = tuple(known)  # of which a forged kind, such as a list, may be asked
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in names for kind in kinds):
        raise EngineError(
            f"layer_types in config.json is {repr(kinds)[:80]}, expected {layers} of {', '.join(known)}"
        )
    return lambda index: known[kinds[index]]


def _frequencies(config: Mapping[str, Any], kind: str, size: int) -> NDArray[np.float32]:
    """Return the angle of each pair of features at position 1, computed in float32 as torch does."""
    key, usual = _BASES[kind]
    given = config.get("rope_parameters") or {}
    about = given.get(kind) if isinstance(given, Mapping) else given
    about = {} if about is None else about
    scaling = config.get("rope_scaling")
    is_default = isinstance(about, Mapping) and about.get("rope_type", "default") == "default"
    if scaling is not None or not is_default:
        raise EngineError(
            f"rope_parameters in config.json is {repr(scaling or given)[:80]}; the engine has the rope_type "
            "'default': run this model with torch"
        )
    base = about.get("rope_theta", config.get(key, usual))
    if isinstance(base, bool) or not isinstance(base, int | float) or not 0 < base < 1e30:
        raise EngineError(f"{key} in config.json is {base!r}, expected a number above 0")
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    powers: NDArray[np.float32] = np.float32(1) / np.power(np.float32(base), exponents)
    return powers
