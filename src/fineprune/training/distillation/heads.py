"""The kinds of answers that can be distilled, and where a model gives them.

The answers of a head are one tensor of logits: (rows, classes) for texts, (rows, 1) for values (a
regression or the score of a cross-encoder), (rows, features) for embeddings, (rows, positions, classes) for
tokens, (rows, positions, vocabulary) for next tokens, and (rows, positions, 2) for spans, the logits of start
and end side by side.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import Head, kind_of

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")  # no recipe trains them, a host may


def head_of(model: nn.Module) -> Head | None:
    """Return the form of a transformers model's answers, by its class or one that it inherits from."""
    kind = kind_of(model)
    if kind is not None:
        return kind.head(getattr(model, "config", None))
    named = any(base.__name__.endswith(_LANGUAGE_MODELS) for base in type(model).__mro__)
    return "next_tokens" if named else None


def head_module(model: nn.Module) -> nn.Module:
    """Return the module that gives the answers: the model, or the one inside it, as in a cross-encoder.

    A model without a known head is returned as it is.
    """
    return next((module for module in model.modules() if head_of(module) is not None), model)


def hidden_states(outputs: Any) -> Sequence[Tensor]:
    """Return the hidden states of a model's output: after the embeddings, then after each layer."""
    states = outputs.get("hidden_states") if hasattr(outputs, "get") else None
    if not states:
        raise FinepruneError(
            "distillation: the model's output has no hidden_states, so hidden must be 0 (leave it out)"
        )
    return list[Tensor](states)


def answers(outputs: Any) -> Tensor:
    """Return the logits of a model's output as one tensor."""
    try:
        if "start_logits" in outputs:
            return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
        logits: Tensor = outputs["logits"]
    except (KeyError, TypeError, IndexError) as error:
        raise FinepruneError(
            "distillation: the model's output has neither logits nor start_logits and end_logits; "
            "leave return_dict as it is"
        ) from error
    return logits
