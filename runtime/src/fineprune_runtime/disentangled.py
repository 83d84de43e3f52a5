"""The relative positions of DeBERTa's attention: their embeddings, and the row of each distance.

A score is q k + q P[i] + k R[i], where i is the row of the distance from query to key, and P and R are
projections of the embeddings (He et al., 2021, arXiv:2006.03654). Rows are of distances in version 2, and of
logarithmic buckets of them in version 3.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.architectures import epsilon, misfit, whole
from fineprune_runtime.errors import EngineError
from fineprune_runtime.layers import Floats, Norm, Relative, layer_norm

TABLE, NORM = "encoder.rel_embeddings", "encoder.LayerNorm"
_KINDS = {"c2p": "attention.self.pos_key_proj", "p2c": "attention.self.pos_query_proj"}


def projections(config: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the projections of each layer that are used, "c2p" and "p2c", by the names of their matrices.

    None stands for the layer's own key or query matrix. {} without relative positions.

    Raises:
        EngineError: config.json asks for another kind of attention.
    """
    if config["model_type"] != "deberta-v2":
        return {}
    given = config.get("pos_att_type")
    given = [] if given is None else given
    names = [part.strip() for part in given.lower().split("|")] if isinstance(given, str) else given
    if not isinstance(names, list) or any(name not in tuple(_KINDS) for name in names):
        raise EngineError(f"pos_att_type in config.json is {given!r}, allowed are {' and '.join(_KINDS)}")
    if bool(names) != (config.get("relative_attention") is True):
        raise EngineError(
            f"config.json: pos_att_type is {given!r} and relative_attention is "
            f"{config.get('relative_attention')!r}, which the engine cannot run: run this model with torch"
        )
    if config.get("conv_kernel_size", 0):
        raise EngineError(
            f"conv_kernel_size in config.json is {config['conv_kernel_size']!r}; the engine has no "
            "convolution: run this model with torch"
        )
    shared = config.get("share_att_key", False) is True
    return {kind: None if shared else name for kind, name in _KINDS.items() if kind in names}


def relative_positions(
    config: Mapping[str, Any], read: Callable[[str, tuple[int, ...]], Floats], prefix: str
) -> Relative | None:
    """Return the `relative` of an `Encoder`; None for an architecture without it.

    Args:
        config: the content of config.json.
        read: returns the weight of a name and a shape, float32.
        prefix: in front of all names, as of `each_layer`.

    Raises:
        EngineError: a setting that the engine lacks, or a weight of another shape.
    """
    if not projections(config):
        return None
    most = config.get("max_relative_positions", -1)
    most = whole(config, "max_position_embeddings", 512) if most is None or most == -1 else most
    buckets = config.get("position_buckets", -1)
    for name, value in (("max_relative_positions", most), ("position_buckets", buckets)):
        if isinstance(value, bool) or not isinstance(value, int) or not (value == -1 or 2 <= value <= 2**15):
            raise EngineError(f"{name} in config.json is {value!r}, expected -1, or 2 to {2**15}")
    span, hidden = (buckets if buckets > 0 else most), whole(config, "hidden_size")

    def checked(name: str, *shape: int) -> Floats:
        full = f"{prefix}{name}"
        values = read(full, shape)
        if values.shape != shape:
            raise misfit(full, values.shape, shape)
        return values

    table = checked(f"{TABLE}.weight", 2 * span, hidden)
    if "layer_norm" in str(config.get("norm_rel_ebd", "none")).lower():
        norm = Norm(checked(f"{NORM}.weight", hidden), checked(f"{NORM}.bias", hidden))
        table = layer_norm(table, norm, epsilon(config))
    return Relative(table, rows(span, most, buckets))


def rows(span: int, most: int, buckets: int) -> NDArray[np.int64]:
    """Return the row of each distance from -most to most, query - key; farther ones have the same as these.

    Args:
        span: half the rows of the table.
        most: the largest distance.
        buckets: half of the buckets; -1: every distance has a row.
    """
    distance = np.arange(-most, most + 1)
    place = distance if buckets <= 0 else _bucket(distance, buckets, most)
    return np.clip(place + span, 0, 2 * span - 1)


def _bucket(distance: NDArray[np.int64], buckets: int, most: int) -> NDArray[np.int64]:
    """Return the bucket of each distance, computed in float32 as torch does: a rounding decides at an end."""
    half = buckets // 2
    size = np.maximum(np.abs(distance), 1).astype(np.float32)
    share = np.log(size / np.float32(half)) / np.log(np.float32((most - 1) / half))
    farther = np.ceil(share * np.float32(half - 1)).astype(np.int64) + half
    return np.where(np.abs(distance) <= half, distance, np.sign(distance) * farther)
