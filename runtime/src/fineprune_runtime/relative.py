"""The bias of attention by distance, as MPNet's: from buckets of distances to a number for each distance."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.architectures import architecture, misfit, whole
from fineprune_runtime.errors import EngineError

Floats = NDArray[np.float32]

BUCKETS = 32
"""Of MPNet, whatever its config says: half for keys up to the query, half for those after it."""

REACH = 128
"""The distance from which on all are in the last bucket of their half."""


def bucket(distance: int) -> int:
    """Return the bucket of a distance, key - query (Raffel et al., 2020, as MPNet has it).

    Each distance below 8 has a bucket; the others begin at 8, 12, 16, 23, 32, 46, 64, 91.
    """
    size = abs(distance)
    half = BUCKETS // 2
    # 8 + floor(2 log2(size / 8)), in whole numbers
    place = size if size < half // 2 else min(half - 1, half // 2 - 1 + (size * size // 64).bit_length())
    return place + half if distance > 0 else place


def relative_bias(
    config: Mapping[str, Any], read: Callable[[str, tuple[int, ...]], Floats], prefix: str
) -> Floats | None:
    """Return the `bias` of an `Encoder`, (heads, 2 * REACH + 1); None for an architecture without one.

    Args:
        config: the content of config.json.
        read: returns the weight of a name and a shape, float32.
        prefix: in front of all names, as of `each_layer`.

    Raises:
        EngineError: the table, or the number of buckets in config.json, is another.
    """
    name = architecture(config).bias
    if name is None:
        return None
    buckets = config.get("relative_attention_num_buckets", BUCKETS)
    if buckets != BUCKETS:
        raise EngineError(
            f"relative_attention_num_buckets in config.json is {buckets!r}; MPNet computes {BUCKETS}: "
            "run this model with torch"
        )
    shape = (BUCKETS, whole(config, "num_attention_heads"))
    table = read(f"{prefix}{name}.weight", shape)
    if table.shape != shape:
        raise misfit(f"{prefix}{name}.weight", table.shape, shape)
    return table.T[:, [bucket(distance) for distance in range(-REACH, REACH + 1)]]
