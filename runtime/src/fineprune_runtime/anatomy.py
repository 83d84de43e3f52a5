"""Which part of a transformer's block each matrix is, read off its name; and the heads of an attention.

The one table of names: the engine finds a model's matrices by it, fineprune its heads and neurons.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal["Q", "K", "V", "QKV", "O", "FFN in", "FFN out", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which figures show them. Both input matrices of a gated feed-forward are "FFN in"."""

HEAD_COUNTS = ("num_attention_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads")
"""The names that configurations have for the heads of an attention."""

_HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "d_kv", "key_value_proj_dim")


class Place(NamedTuple):
    """Where a matrix is in its model."""

    stack: str
    """The name in front of the layer's number: tells an encoder from a decoder."""

    layer: int | None
    """From 0; None where the name has no number."""

    kind: Kind


# Ends of dotted names. The first match counts: BERT's `output.dense` belongs to the feed-forward, unless it
# is the attention's. A decoder's cross-attention is attention too; a projection of relative positions has the
# kind of the matrix that its result is compared with.
_ENDS: tuple[tuple[Kind, str], ...] = (
    ("QKV", r"c_attn|Wqkv|qkv(_proj)?|query_key_value"),
    ("Q", r"query(_proj)?|q|q_proj|q_lin|q_attn|q_head|pos_(query|q)_proj"),
    ("K", r"key(_proj)?|k|k_proj|k_lin|k_head|pos_(key_)?proj"),
    ("V", r"value(_proj)?|v|v_proj|v_lin|v_head"),
    ("O", r"\w*[Aa]tt(n|ention)\.((output\.)?dense|o|c_proj|Wo)|o_proj|out_proj|out_lin|post_proj"),
    (
        "FFN in",
        r"intermediate(_|\.)dense|ffn|lin1|fc1|c_fc|wi(_\d)?|Wi|gate_proj|up_proj|gate_up_proj|dense_h_to_4h"
        r"|linear_1|ff\.layer_1",
    ),
    (
        "FFN out",
        r"output(_|\.)dense|ffn_output|lin2|fc2|mlp\.c_proj|wo|Wo|down_proj|dense_4h_to_h|linear_2|ff\.layer_2",
    ),
)
_PATTERNS = tuple((kind, re.compile(rf"(?:^|\.)(?:{ends})$")) for kind, ends in _ENDS)
_NUMBER = re.compile(r"^(.*?)(?:^|\.)(\d+)\.")


def place_of(name: str) -> Place:
    """Return the place that the dotted name of a linear layer tells; no pattern matches kind "other"."""
    kind: Kind = next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "other")
    numbered = _NUMBER.match(name)
    if numbered is None:
        return Place(name.rpartition(".")[0], None, kind)
    return Place(numbered[1], int(numbered[2]), kind)


def by_kind(*names: str) -> dict[Kind, str]:
    """Return the names of a block's matrices by their kinds, of which each occurs once.

    Raises:
        ValueError: two names of one kind, or a name without one.
    """
    kinds: dict[Kind, str] = {}
    for name in names:
        kind = place_of(name).kind
        if kind == "other" or kind in kinds:
            raise ValueError(f"{name} is of kind {kind}, as is {kinds.get(kind, 'no matrix of a block')}")
        kinds[kind] = name
    return kinds


def heads_of(config: Mapping[str, Any]) -> int:
    """Return how many heads each attention of a configuration has; 0 unless it gives one number."""
    given = next((config[name] for name in HEAD_COUNTS if name in config), 0)
    other = config.get("decoder_attention_heads", given)
    return given if _is_positive(given) and given == other else 0


def head_size_of(attention: Any) -> int | None:
    """Return the lines of a head as an attention module or a configuration has it; None if it does not.

    The hidden size divided by the heads is no substitute: in T5, Qwen3 and ViT it may differ.
    """
    get = attention.get if isinstance(attention, Mapping) else lambda name: getattr(attention, name, None)
    return next((value for value in map(get, _HEAD_SIZES) if _is_positive(value)), None)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
