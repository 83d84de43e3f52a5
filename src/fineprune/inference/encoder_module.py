"""Run the encoder of BERT and related models as a whole in the engine."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from fineprune.checkpoint.packing import PackedLinear
from fineprune.errors import FinepruneError
from fineprune.inference.engine_module import EngineModule
from fineprune.inference.weights import linear_of, vector_of
from fineprune_runtime import architectures
from fineprune_runtime.disentangled import relative_positions
from fineprune_runtime.encoder_layers import each_layer
from fineprune_runtime.errors import EngineError
from fineprune_runtime.layers import Layer, Matrix
from fineprune_runtime.relative import relative_bias

# A softmax turns this into an exact 0 in float32; every mask of transformers adds a lower number.
_DROPPED = -1000.0
_REFUSED = ("past_key_values", "encoder_hidden_states", "encoder_attention_mask")


class EncoderModule(EngineModule):
    """Replace `BertModel.encoder` or `DistilBertModel.transformer`, with the same outputs.

    `engine` is called as engine(hidden, mask) on float32 (batch, length, hidden) and bool (batch, length).
    Where the mask is 0 the output is 0, except for the first token, which heads read; torch has values of no
    meaning there. A text of masked tokens only has the answer of torch's "sdpa". `config` is the live
    model's, read at each call.
    """

    @classmethod
    def put(cls, owner: nn.Module, name: str, engine: Any, trainable: bool) -> None:
        """Replace the encoder of a base model, its attribute `name`."""
        setattr(owner, name, cls(engine, owner.config, trainable))

    def __init__(self, engine: Any, config: Any, trainable: bool) -> None:
        super().__init__(engine, trainable)
        self.config = config

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> BaseModelOutput:
        """Return `.last_hidden_state` in the shape (batch, length, hidden) and type of `hidden_states`.

        The type may be any floating one.
        """
        result = self.run(hidden_states, attention_mask, kwargs)
        # BERT's model reads past_key_values from what its encoder gives; these two hand it on as it is.
        is_plain = self.config.model_type in ("distilbert", "mpnet")
        kind = BaseModelOutput if is_plain else BaseModelOutputWithPastAndCrossAttentions
        return kind(last_hidden_state=result)

    def run(self, hidden_states: Tensor, attention_mask: Any, asked: dict[str, Any]) -> Tensor:
        """Return the last hidden state, in the type of `hidden_states`; `asked` has the other arguments."""
        self.refuse_tracing()  # before the mask is read, of which tracing has warnings of its own
        self._refuse(asked)
        batch, length, _ = hidden_states.shape
        mask = keep_mask(attention_mask, batch, length)
        rows = None if mask is None or bool(mask.all()) else mask.contiguous().numpy()

        def run(x: Tensor) -> Tensor:
            return torch.from_numpy(self.engine(x.numpy(), rows)).to(hidden_states.dtype)

        return self.apply_engine(hidden_states, run)

    def _refuse(self, asked: dict[str, Any]) -> None:
        """Raise for outputs and inputs that only torch supports."""
        for flag in ("output_hidden_states", "output_attentions"):
            refuse(flag, asked.get(flag), self.config)
        for what in _REFUSED:
            if asked.get(what) is not None:
                raise FinepruneError(
                    f"{what}: an accelerated encoder reads one complete text at a time; leave it out, or "
                    "load the model again without accelerate"
                )
        if asked.get("is_causal"):
            raise FinepruneError("is_causal=True: the engine's attention sees all tokens; leave it out")

    def extra_repr(self) -> str:
        return f"level={self.engine.level}, dtype={self.engine.dtype}, bytes={self.engine.nbytes}"


def refuse(flag: str, asked: Any, config: Any) -> None:
    """Raise `FinepruneError` if a call, or else the configuration, asks for inner states."""
    # transformers collects these by hooks on layers that are no more: the same rule as it has.
    if getattr(config, flag, False) if asked is None else asked:
        raise FinepruneError(
            f"{flag}=True: an accelerated encoder gives only its last hidden state; leave it out, "
            "or load the model again without accelerate"
        )


def keep_mask(mask: Any, batch: int, length: int) -> Tensor | None:
    """Return which tokens are present, bool (batch, length), from any of transformers' forms; None: all are.

    A 2-d mask has this form. A 4-d one (batch, heads or 1, queries or 1, length) is bool, or a number that is
    added: 0 for a token, hugely negative elsewhere.

    Raises:
        FinepruneError: for a mask that differs by query or head, that adds other numbers, or of another form.
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
    """Return whether all heads and queries of a 4-d mask see the same tokens; expanded axes are not read."""
    single = all(mask.shape[axis] == 1 or mask.stride(axis) == 0 for axis in (1, 2))
    return single or bool((mask == mask[:, :1, :1]).all())


def encoder_name(model: nn.Module) -> str | None:
    """Return the name of the encoder in a base model that the engine can run as a whole; None for others.

    Raises:
        EngineError: if the model has one of these architectures, but changed so that the engine's output
            would differ; the message has the reason.
    """
    config = getattr(model, "config", None)
    known = architectures.ARCHITECTURES.get(getattr(config, "model_type", None) or "")
    if config is None or known is None:
        return None
    name, _, inside = known.layer.partition(".")
    encoder = model._modules.get(name)
    layers = None if encoder is None else encoder._modules.get(inside) if inside else encoder
    if encoder is None or not isinstance(layers, nn.ModuleList) or not layers:
        return None
    modeling = type(encoder if inside else layers[0]).__module__
    if not modeling.startswith("transformers.models."):
        return None
    packed = ("fineprune.checkpoint.packing", "fineprune.checkpoint.packed_embedding")
    plain = (modeling, "torch.nn.modules.", "transformers.activations", *packed)
    for inner, module in model.named_modules():
        is_replaced = inner.partition(".")[0] in (name, known.final_norm)
        if is_replaced and not type(module).__module__.startswith(plain):
            raise EngineError(f"{inner} is a {type(module).__name__}, which the engine does not know")
    if config.model_type == "modernbert" and "full_attention" not in config.layer_types:
        raise EngineError("none of this modernbert's layers sees all tokens, which is not possible here")
    _check_shapes(model, config.to_dict())
    return name


def read_layers(model: nn.Module) -> Iterator[Layer]:
    """Yield the layers of a base model that has an `encoder_name`, for the engine.

    Each is read on demand: all together take several times the memory of the packed weights.
    """
    config: Any = model.config
    yield from each_layer(
        config.to_dict(),
        lambda name: linear_of(_owner(model, name)).weight,
        lambda name: _vector(model, name),
        "",
        lambda name: _shape(model, name),
    )


def read_tables(model: nn.Module) -> dict[str, Any]:
    """Return the `bias` and the `relative` of the engine's encoder for such a base model; None without."""
    config: Any = model.config

    def read(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        table: Any = _owner(model, name)
        if not hasattr(table, "num_embeddings"):
            return vector_of(table.get_parameter(name.rpartition(".")[2]))
        return vector_of(table(torch.arange(table.num_embeddings)))  # by looking rows up, as it may be packed

    settings = config.to_dict()
    return {
        "bias": relative_bias(settings, read, ""),
        "relative": relative_positions(settings, read, ""),
    }


def _check_shapes(model: nn.Module, config: dict[str, Any]) -> None:
    """Raise `EngineError` where `read_layers` would, or where the engine lacks a setting; reads no matrix."""

    def matrix(name: str) -> Matrix:
        return Matrix(_shape(model, name), None, np.empty(0, np.float32))

    for _ in each_layer(
        config, matrix, lambda name: _vector(model, name), "", lambda name: _shape(model, name)
    ):
        pass
    read_tables(model)


def _shape(model: nn.Module, name: str) -> tuple[int, int]:
    module = _owner(model, name)
    rows, columns = module.shape if isinstance(module, PackedLinear) else module.get_parameter("weight").shape
    return rows, columns


def _owner(model: nn.Module, weight: str) -> nn.Module:
    return model.get_submodule(weight.rpartition(".")[0])


def _vector(model: nn.Module, name: str) -> Any:
    parameter = getattr(_owner(model, name), name.rpartition(".")[2], None)
    return np.zeros(0, np.float32) if parameter is None else vector_of(parameter)  # of no expected size
