"""The encoder of BERT and its kin, run whole by the engine."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from fineprune.checkpoint.packing import PackedLinear
from fineprune.errors import FinepruneError
from fineprune.inference.engine_module import EngineModule
from fineprune.inference.weights import linear_of, vector_of
from fineprune_runtime import architectures
from fineprune_runtime.errors import EngineError
from fineprune_runtime.layers import Layer, Matrix

# What a softmax turns into an exact 0 in float32, and less than any mask of transformers takes off.
_DROPPED = -1000.0
_REFUSED = ("past_key_values", "encoder_hidden_states", "encoder_attention_mask")


class EncoderModule(EngineModule):
    """Takes the place of `BertModel.encoder` or `DistilBertModel.transformer`, and answers as it does.

    `engine` is called as engine(hidden, mask) on float32 (batch, length, hidden) and bool (batch, length).
    Where the mask is 0 the answer is 0, which torch leaves to chance. `config` is the live model's: what it
    asks for at the time of a call counts.
    """

    def __init__(self, engine: Any, config: Any, trainable: bool) -> None:
        super().__init__(engine, trainable)
        self.config = config

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> BaseModelOutput:
        """`hidden_states` (batch, length, hidden) of any floating type -> `.last_hidden_state`, the same."""
        self._refuse(kwargs)
        batch, length, _ = hidden_states.shape
        mask = keep_mask(attention_mask, batch, length)
        rows = None if mask is None or bool(mask.all()) else mask.contiguous().numpy()

        def run(x: Tensor) -> Tensor:
            return torch.from_numpy(self.engine(x.numpy(), rows)).to(hidden_states.dtype)

        result = self.apply_engine(hidden_states, run)
        # BERT's model reads past_key_values from what its encoder gives; DistilBERT's hands it on as it is.
        is_bert = self.config.model_type != "distilbert"
        kind = BaseModelOutputWithPastAndCrossAttentions if is_bert else BaseModelOutput
        return kind(last_hidden_state=result)

    def _refuse(self, asked: dict[str, Any]) -> None:
        """Raise for what only torch can give."""
        for what in ("hidden_states", "attentions"):
            flag = f"output_{what}"
            # transformers collects these by hooks on layers that are no more: the same rule as it has.
            if asked.get(flag, getattr(self.config, flag, False)):
                raise FinepruneError(
                    f"{flag}=True: an accelerated encoder gives its last hidden state alone; leave it out, "
                    "or load the model again without accelerate"
                )
        for what in _REFUSED:
            if asked.get(what) is not None:
                raise FinepruneError(
                    f"{what}: an accelerated encoder reads one text at a time, whole; leave it out, or load "
                    "the model again without accelerate"
                )
        if asked.get("is_causal"):
            raise FinepruneError("is_causal=True: the engine's attention sees all tokens; leave it out")

    def extra_repr(self) -> str:
        return f"level={self.engine.level}, dtype={self.engine.dtype}, bytes={self.engine.nbytes}"


def keep_mask(mask: Any, batch: int, length: int) -> Tensor | None:
    """Which tokens are there, bool (batch, length), from whatever form transformers gives; None: all are.

    2-d is that already. 4-d (batch, heads or 1, queries or 1, length) is bool, or a number that is
    added: 0 for a token, hugely negative elsewhere. Raises `FinepruneError` for a mask that differs by query
    or head, for one that adds anything else, and for other forms.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise FinepruneError(
            f"attention mask of type {type(mask).__name__}: load the model with attn_implementation='sdpa'"
        )
    rows = mask
    if mask.ndim == 4:
        rows = mask[:, 0, 0]
        if not _same_for_all(mask):
            raise FinepruneError(
                "the attention mask differs between the queries (or heads) of a text; the engine's attention "
                "sees all tokens: give a mask of shape (batch, length), or load without accelerate"
            )
        if rows.is_floating_point():
            dropped = rows <= _DROPPED
            if not bool((dropped | (rows == 0)).all()):
                raise FinepruneError(
                    "the attention mask adds other numbers than 0 and large negative ones, which the engine "
                    "cannot: give a mask of shape (batch, length), or load without accelerate"
                )
            rows = ~dropped
    if mask.ndim not in (2, 4) or rows.shape[0] not in (1, batch) or rows.shape[1] != length:
        raise FinepruneError(
            f"attention mask of shape {tuple(mask.shape)}: give one of shape ({batch}, {length}), "
            "(batch, length)"
        )
    return (rows != 0).expand(batch, length)


def _same_for_all(mask: Tensor) -> bool:
    """Whether every head and query of a 4-d mask sees the same tokens; one made by expand() is not read."""
    single = all(mask.shape[axis] == 1 or mask.stride(axis) == 0 for axis in (1, 2))
    return single or bool((mask == mask[:, :1, :1]).all())


def encoder_name(model: nn.Module) -> str | None:
    """What the encoder is called in a base model that the engine can run whole; None for another model.

    Raises `EngineError` with the reason where it is one of these architectures, yet changed in such a way
    that the engine would answer something else.
    """
    config = getattr(model, "config", None)
    known = architectures.ARCHITECTURES.get(getattr(config, "model_type", None) or "")
    if config is None or known is None:
        return None
    name, _, inside = known.layer.partition(".")
    encoder = model._modules.get(name)
    modeling = type(encoder).__module__
    if encoder is None or inside not in encoder._modules or not modeling.startswith("transformers.models."):
        return None
    plain = (modeling, "torch.nn.modules.", "transformers.activations", "fineprune.checkpoint.packing")
    for inner, module in encoder.named_modules():
        if not type(module).__module__.startswith(plain):
            raise EngineError(f"{name}.{inner} is a {type(module).__name__}, which the engine does not know")
    _check_shapes(model, config.to_dict())
    return name


def read_layers(model: nn.Module) -> Iterator[Layer]:
    """The layers of a base model that has an `encoder_name`, for the engine.

    Each is read when it is asked for: of a whole model they take several times the packed weights' memory.
    """
    config: Any = model.config
    yield from architectures.each_layer(
        config.to_dict(),
        lambda name: linear_of(_owner(model, name)).weight,
        lambda name: _vector(model, name),
        "",
    )


def _check_shapes(model: nn.Module, config: dict[str, Any]) -> None:
    """Raise `EngineError` where `read_layers` would, or where the engine lacks a setting; reads no matrix."""

    def matrix(name: str) -> Matrix:
        module = _owner(model, name)
        rows, columns = (
            module.shape if isinstance(module, PackedLinear) else module.get_parameter("weight").shape
        )
        return Matrix((rows, columns), None, np.empty(0, np.float32))

    for _ in architectures.each_layer(config, matrix, lambda name: _vector(model, name), ""):
        pass


def _owner(model: nn.Module, weight: str) -> nn.Module:
    return model.get_submodule(weight.rpartition(".")[0])


def _vector(model: nn.Module, name: str) -> Any:
    parameter = getattr(_owner(model, name), name.rpartition(".")[2], None)
    return np.zeros(0, np.float32) if parameter is None else vector_of(parameter)  # of no expected size
