"""What the name of a matrix says: which layer it is in, and which of the block's matrices it is."""

import re
from typing import Literal, NamedTuple, get_args

Kind = Literal["Q", "K", "V", "QKV", "O", "FFN in", "FFN out", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which figures show them. "FFN in" are both matrices of a gated feed-forward."""


class Place(NamedTuple):
    """Where a matrix is."""

    stack: str
    """What comes before the layer's number: tells an encoder from a decoder."""

    layer: int | None
    """From 0; None where the name has no number."""

    kind: Kind


# By the end of the dotted name, in this order: BERT's `output.dense` is the feed-forward's, unless it is the
# attention's. A decoder's cross-attention counts as attention, projections of relative positions as what they
# are compared with.
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
    """Read the dotted name of a linear layer; what no pattern knows is of kind "other"."""
    kind: Kind = next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "other")
    numbered = _NUMBER.match(name)
    if numbered is None:
        return Place(name.rpartition(".")[0], None, kind)
    return Place(numbered[1], int(numbered[2]), kind)
