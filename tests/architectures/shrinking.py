"""Which architectures `shrink` takes heads and neurons from, written by hand, and models with empty ones."""

from typing import Any, NamedTuple

import numpy as np
import torch
from architectures.models import ARCHITECTURES, BERT, made

from fineprune.pruning.layout import layout_of

GPT_NEOX = {**BERT, "num_attention_heads": 4}
GROUPED = {**BERT, "num_attention_heads": 4, "num_key_value_heads": 2}
OTHERS = {
    "Mistral": ("MistralForCausalLM", GROUPED),
    "Phi-3": ("Phi3ForCausalLM", GROUPED),
    "GPT-NeoX": ("GPTNeoXForCausalLM", GPT_NEOX),
    "BLOOM": ("BloomForCausalLM", {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "Falcon": (
        "FalconForCausalLM",
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    ),
}
"""Architectures that are in no other table."""

MORE_HEADS = {
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "d_kv": 4,
}


class Shrinks(NamedTuple):
    """What `shrink` removes from an architecture, and whether an ordinary model comes out of equal widths."""

    heads: str = "yes"
    """"yes", "equal widths" or "no"."""

    ordinary: str = "neurons"
    """"neurons" where these alone give an ordinary model, "both", or "none"."""

    note: str = ""


POSITION_BIAS = "one bias of positions, made for all heads, is added in every layer"
SIZE = "the class takes the size of a head"
SHRINKS: dict[str, Shrinks | None] = {
    "BERT": Shrinks(),
    "RoBERTa": Shrinks(),
    "DistilBERT": Shrinks(),
    "ELECTRA": Shrinks(),
    "ALBERT": Shrinks(note="one layer, which all places share"),
    "DeBERTa-v2": Shrinks(note="projections of relative positions are cut too"),
    "DeBERTa-v3": Shrinks(),
    "MPNet": Shrinks("no", note=POSITION_BIAS),
    "ModernBERT": Shrinks(),
    "GPT-2": Shrinks(),
    "Llama": Shrinks(ordinary="both", note=SIZE),
    "Qwen2": Shrinks(ordinary="both", note=SIZE),
    "Qwen3": Shrinks(ordinary="both", note=SIZE),
    "Mistral": Shrinks(ordinary="both", note=SIZE),
    "Phi-3": Shrinks("equal widths", "both", "its code reads the number of heads off the configuration"),
    "GPT-NeoX": Shrinks(),
    "BLOOM": Shrinks("no", "none", "a slope of positions for each head comes from outside of the layers"),
    "Falcon": Shrinks(),
    "T5": Shrinks("no", note=POSITION_BIAS),
    "T5 v1.1": Shrinks("no", note=POSITION_BIAS),
    "BART": Shrinks(),
    "ViT": Shrinks(ordinary="both", note=SIZE),
    "Wav2Vec2": Shrinks(),
    "SqueezeBERT": None,
    "PoolFormer": None,
}
"""None: there are no heads or neurons that can be told."""


def with_heads(name: str) -> Any:
    """A tiny model with four heads in each attention, in two groups where heads share K and V."""
    if name in OTHERS:
        return made(*OTHERS[name])
    entry = ARCHITECTURES[name]
    sizes = entry.settings
    return made(entry.kind, {key: MORE_HEADS.get(key, value) for key, value in sizes.items()})


@torch.no_grad()
def empty(model: Any, choose: Any, ways: tuple[str, ...] = ("read", "made")) -> dict[str, list[int]]:
    """Empty the units that are not chosen, where they are read and where they are made by turns.

    Args:
        model: a model; its biases and norms become random first.
        choose: of the number of a layer, "heads" or "neurons", and the number of units: those that stay.
        ways: "read" zeroes the weights that read a unit, "made" those that make its value.

    Returns:
        The units that stay, by half: heads, not groups of them.
    """
    generator = torch.Generator().manual_seed(1)
    for parameter in (one for one in model.parameters() if one.ndim == 1):
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    kept = {}
    for block in layout_of(model):
        for half in (*block.attentions, *block.feed_forwards):
            is_heads = hasattr(half, "sizes")
            units = half.sizes.groups if is_heads else half.neurons
            chosen = choose(block.layer, "heads" if is_heads else "neurons", units)
            gone = np.setdiff1d(np.arange(units), chosen)
            for part in half.lines:
                way = "read" if part.kind in ("O", "FFN out") else "made"
                if way in ways and part.kind not in ("Q", "K"):
                    turn = gone[ways.index(way) :: len(ways)]
                    lines = torch.from_numpy(part.positions[np.isin(part.units, turn)])
                    model.get_submodule(part.matrix).weight.index_fill_(part.axis, lines, 0)
            together = half.sizes.heads // half.sizes.groups if is_heads else 1
            kept[half.name] = [unit * together + n for unit in chosen for n in range(together)]
    return kept
