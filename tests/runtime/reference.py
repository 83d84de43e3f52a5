"""A post-norm encoder in plain numpy and float64: what the engine's answers are compared with."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

erf = np.vectorize(math.erf, otypes=[np.float64])


def reference_encoder(
    layers: Sequence[Any],
    hidden: Any,
    mask: Any,
    head_dim: int,
    activation: str,
    epsilon: float,
    bias: Any = None,
    pre_norm: bool = False,
    relative: Any = None,
) -> NDArray[np.float64]:
    """The output of the last of `layers` (`fineprune_runtime.Layer`), (batch, length, D) in float64.

    `hidden` is (batch, length, D); `mask` is (batch, length), nonzero for a token, or None; where it
    is 0 the output is 0, except at the first place of a text. `activation` is "gelu", "gelu_tanh" or
    "relu". `bias` is (rows, 2 * reach + 1), of which each head adds a row by distance. Vaswani et al.,
    2017, eq. 1, with the norms behind each sum as in BERT, or with `pre_norm` beside it. `relative` is a
    `Relative`, for products with positions.
    """
    hidden = np.asarray(hidden, dtype=np.float64)
    mask = np.ones(hidden.shape[:2]) if mask is None else np.asarray(mask)
    total = hidden
    for layer in layers:
        query, key, value = (linear(part, hidden) for part in (layer.query, layer.key, layer.value))
        if layer.rotary is not None:
            query, key = (rotated(x, layer.rotary.astype(np.float64)) for x in (query, key))
        added = 0.0 if layer.bias_rows is None else by_distance(bias, layer.bias_rows, hidden.shape[1])
        products = []
        if layer.position_key is not None:
            products.append(by_position(heads(query, head_dim), layer.position_key, relative))
        if layer.position_query is not None:
            rows = relative._replace(rows=relative.rows[::-1])  # by key - query
            products.append(by_position(heads(key, head_dim), layer.position_query, rows).swapaxes(2, 3))
        root = math.sqrt(head_dim * (1 + len(products)))
        added = sum((product / root for product in products), added)
        mixed = attention(query, key, value, mask, head_dim, added, layer.window, root)
        total = total + linear(layer.attention_output, mixed)
        hidden = norm(layer.attention_norm, total, epsilon)
        total = total if pre_norm else hidden
        inner = activate(linear(layer.ffn_in, hidden), activation)
        inner = inner if layer.ffn_gate is None else inner * linear(layer.ffn_gate, hidden)
        total = total + linear(layer.ffn_out, inner)
        hidden = norm(layer.output_norm, total, epsilon)
        total = total if pre_norm else hidden
    shown = (mask != 0) | (np.arange(mask.shape[1]) == 0)
    result: NDArray[np.float64] = np.where(shown[:, :, None], hidden, 0.0)
    return result


def linear(part: Any, x: Any) -> Any:
    """`x`, (..., inputs), through a `fineprune_runtime.Linear`: (..., outputs)."""
    result = x @ part.weight.to_dense().astype(np.float64).T
    return result if part.bias is None else result + part.bias.astype(np.float64)


def by_distance(bias: Any, rows: Any, length: int) -> Any:
    """The row of each head, spread out over queries and keys: (heads, length, length)."""
    reach = bias.shape[1] // 2
    distance = np.arange(length) - np.arange(length)[:, None]
    return bias[rows][:, np.clip(distance, -reach, reach) + reach].astype(np.float64)


def rotated(x: Any, frequencies: Any) -> Any:
    """Each head's halves as points, rotated by their token's position x frequency (Su et al., 2021)."""
    batch, length, width = x.shape
    low, high = np.moveaxis(x.reshape(batch, length, -1, 2, len(frequencies)), 3, 0)
    angles = (np.arange(length)[:, None] * frequencies)[None, :, None]
    low, high = low * np.cos(angles) - high * np.sin(angles), high * np.cos(angles) + low * np.sin(angles)
    return np.stack([low, high], axis=3).reshape(batch, length, width)


def heads(x: Any, head_dim: int) -> Any:
    """(batch, length, heads x head_dim) as (batch, heads, length, head_dim)."""
    batch, length, width = x.shape
    return x.reshape(batch, length, width // head_dim, head_dim).transpose(0, 2, 1, 3)


def by_position(x: Any, projection: Any, relative: Any) -> Any:
    """Products of tokens with the projected position of each other token: (batch, heads, tokens, others)."""
    length, reach = x.shape[2], len(relative.rows) // 2
    distance = np.arange(length)[:, None] - np.arange(length)
    rows = relative.rows[np.clip(distance, -reach, reach) + reach]
    projected = heads(linear(projection, relative.embeddings.astype(np.float64))[None], x.shape[3])
    every = x @ projected.transpose(0, 1, 3, 2)
    return np.take_along_axis(every, np.broadcast_to(rows, (*x.shape[:2], length, length)), axis=3)


def attention(
    query: Any, key: Any, value: Any, mask: Any, head_dim: int, bias: Any, window: int | None, root: float
) -> Any:
    """Softmax attention, head by head; a column of which no key is a token attends to nothing."""
    query, key, value = (heads(x, head_dim) for x in (query, key, value))
    scores = query @ key.transpose(0, 1, 3, 2) / root + bias
    places = np.arange(scores.shape[-1])
    near = True if window is None else np.abs(places - places[:, None]) <= window
    scores = np.where((mask[:, None, None, :] != 0) & near, scores, -np.inf)
    peak = scores.max(axis=-1, keepdims=True)
    powers = np.exp(scores - np.where(np.isfinite(peak), peak, 0.0))
    total = powers.sum(axis=-1, keepdims=True)
    mixed = (powers / np.where(total > 0, total, 1.0)) @ value
    batch, count, length, width = mixed.shape
    return mixed.transpose(0, 2, 1, 3).reshape(batch, length, count * width)


def norm(part: Any, x: Any, epsilon: float) -> Any:
    """Layer norm over the last dimension (Ba et al., 2016)."""
    centered = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + epsilon)
    return centered / spread * part.weight.astype(np.float64) + part.bias.astype(np.float64)


def activate(x: Any, activation: str) -> Any:
    """The activation between the two matrices of the feed-forward part."""
    if activation == "relu":
        return np.maximum(x, 0.0)
    if activation == "gelu":
        return x * 0.5 * (1.0 + erf(x / math.sqrt(2.0)))
    if activation == "gelu_tanh":
        return x * 0.5 * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(activation)
