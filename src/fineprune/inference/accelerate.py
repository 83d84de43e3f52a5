"""Hand a pruned model's weights to the sparse engine, in place: `accelerate`."""

import math
import os
import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

import torch
from torch import nn

from fineprune._engine_errors import engine_errors
from fineprune._messages import choose
from fineprune.checkpoint.packing import SPARSE, PackedLinear
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.inference import fallback
from fineprune.inference.disentangled_module import DisentangledModule
from fineprune.inference.encoder_module import EncoderModule, encoder_name, read_layers, read_tables
from fineprune.inference.layers_module import LayersModule
from fineprune.inference.linear_module import SparseLinear
from fineprune.inference.weights import dense_of, header_of, is_replaceable, linear_of, places
from fineprune.pruning.finalizing import masked_modules
from fineprune.pruning.low_rank import LowRankLinear, is_low_rank, multiply_out
from fineprune.pruning.origin import origin_of
from fineprune.pruning.pruner import Pruner
from fineprune.pruning.targets import check_module, is_linear, refuse_accelerated
from fineprune.pruning.wrapped import transformer_of
from fineprune_runtime import architectures, engine, native
from fineprune_runtime.errors import EngineError
from fineprune_runtime.layers import Linear
from fineprune_runtime.processors import usable_processors

Dtype = Literal["float32", "bfloat16", "int8"]
Model = TypeVar("Model", bound=nn.Module)

_KINDS = {"modernbert": LayersModule, "deberta-v2": DisentangledModule}


class _Whole(NamedTuple):
    """Counts of the encoders replaced as a whole."""

    encoders: int
    pruned: bool
    """Whether one of them is sparse enough to gain."""
    reasons: list[str]
    """Why others were not replaced."""


class _Count(NamedTuple):
    """Counts of the linear layers considered one by one."""

    replaced: int = 0
    dense: int = 0
    """Pruned, but run by torch."""


def accelerate(model: Model, dtype: Dtype = "float32", threads: int | None = None) -> Model:
    """Let the sparse engine run a pruned model on the CPU, in place; return the model, in evaluation mode.

    `model` is finalized, compact, or loaded with `packed=True`, and made of float32 or half-precision
    weights. The encoders of BERT, RoBERTa, XLM-RoBERTa, CamemBERT, data2vec, ERNIE, ELECTRA, DistilBERT,
    MPNet, ModernBERT and DeBERTa v2 and v3 run as a whole; in any other model each pruned linear layer
    (nn.Linear, transformers' Conv1D) runs by itself, with a `FinepruneWarning`. A model without zeros gets a
    warning, too. Embeddings, poolers and heads stay in torch. Of a SentenceTransformer or a CrossEncoder,
    `encode` and `predict` work as before.

    `dtype` is the type the engine computes in: "float32" gives the model's answers up to rounding,
    "bfloat16" and "int8" are faster and coarser, where the processor has instructions for them. `threads`
    is the number that the engine uses; None: as many as torch uses now, and no more than a container may
    use. Without the engine's native library torch's own sparse matrices are used, in "float32" and on torch's
    threads, with a warning.

    The engine's weights are removed from the model: calls, pipelines and deep copies work as before;
    attentions, hidden states of inner layers, training, saving and pickling raise an error.

    Raises:
        FinepruneError: for settings that are unknown or that this processor does not have, and for a model
            that is still being pruned, is accelerated already, or is not on the CPU.
    """
    check(model)
    available = native.dtypes()  # none without a native library
    _check_settings(dtype, threads, available)
    threads = min(torch.get_num_threads(), usable_processors()) if threads is None else threads
    model.eval()
    with engine_errors():
        if available:
            _by_engine(model, dtype, threads)
        else:
            _by_torch(model)
    return model


def check(model: Any) -> None:
    """Raise `FinepruneError` for a model that cannot be accelerated as it is."""
    if isinstance(model, Pruner):
        raise FinepruneError("a pruner cannot be accelerated: fineprune.finalize(pruner.model) first")
    check_module(model, "accelerate")
    refuse_accelerated(model, "it cannot be accelerated twice; load it again for other settings")
    if any(True for _ in masked_modules(model)):
        raise FinepruneError("this model is still being pruned: fineprune.finalize(model) first")
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise FinepruneError(
                f"{name} is on {parameter.device}, and the engine runs on the CPU: model.to('cpu') first"
            )


def _check_settings(dtype: Any, threads: Any, available: tuple[str, ...]) -> None:
    choose(dtype, get_args(Dtype), "dtype")
    if dtype not in (available or ("float32",)):
        here = (
            f"this processor has {', '.join(available)}"
            if available
            else ("the engine's native library is missing, and without it only float32 works")
        )
        raise FinepruneError(f"dtype={dtype!r}: {here}")
    whole = isinstance(threads, Integral) and not isinstance(threads, bool)
    if threads is not None and not (whole and threads >= 1):
        raise FinepruneError(
            f"threads={threads!r}: expected a whole number of 1 or more, or None for as many as torch uses; "
            f"{os.cpu_count()} processors are here"
        )


def _by_engine(model: nn.Module, dtype: str, threads: int) -> None:
    """Replace the encoders that the engine runs as a whole, then single layers of the rest."""
    low_rank = is_low_rank(model)
    if low_rank:
        _multiply_out(model)
    whole = _whole_encoders(model, dtype, threads)
    # Every pruned layer: the engine chooses a sparse or a dense product, and its dense one is not slower.
    count = _each_layer(model, lambda each: engine.SparseLinear(each, dtype=dtype, threads=threads), SPARSE)
    reasons = whole.reasons
    if not whole.encoders and not reasons:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        named = f"model_type {kind!r}" if kind else "a model of this kind"
        reasons = [f"the engine does not run {named} whole, only {', '.join(architectures.ARCHITECTURES)}"]
    if reasons:
        _say(f"{type(model).__name__}: {reasons[0]}; {_describe(count)}")
    elif (
        not low_rank and not whole.pruned and not count.replaced and origin_of(transformer_of(model)) is None
    ):
        _say(f"{type(model).__name__} is not pruned: the engine runs it dense, which gains little")


def _multiply_out(model: nn.Module) -> None:
    """Make one matrix of two thin ones, so that the encoder can run whole.

    Pairs of sparse matrices stay, and those of models that do not run whole.
    """
    pairs = [pair for pair in model.modules() if isinstance(pair, LowRankLinear)]
    kinds = {getattr(getattr(part, "config", None), "model_type", None) for part in model.modules()}
    densities = [density for pair in pairs for density in map(_density, pair) if density is not None]
    if min(densities) <= SPARSE or not kinds & set(architectures.ARCHITECTURES):
        return
    for pair in pairs:
        for place, part in enumerate(pair):
            if isinstance(part, PackedLinear):
                pair[place] = dense_of(part)
    multiply_out(model)


def _by_torch(model: nn.Module) -> None:
    runs = fallback.runs_here()
    count = _each_layer(model, fallback.CsrEngine if runs else None, fallback.BREAK_EVEN)
    _say(
        f"{type(model).__name__}: fineprune_runtime has no native library for this processor, which would be "
        f"several times faster; {_describe(count) if runs else 'torch runs it dense'}"
    )


def _whole_encoders(model: nn.Module, dtype: str, threads: int) -> _Whole:
    """Replace the encoders that the engine runs as a whole."""
    count, pruned = 0, False
    reasons = []
    for owner in list(model.modules()):
        try:
            name = encoder_name(owner)
        except EngineError as error:
            reasons.append(str(error))
            continue
        if name is None:
            continue
        encoder, config = owner.get_submodule(name), cast(Any, owner.config)
        densities = [density for density in map(_density, encoder.modules()) if density is not None]
        trainable = any(parameter.requires_grad for parameter in encoder.parameters())
        settings = architectures.settings(config.to_dict()) | read_tables(owner)
        encoder_engine = engine.Encoder(read_layers(owner), **settings, dtype=dtype, threads=threads)
        _KINDS.get(config.model_type, EncoderModule).put(owner, name, encoder_engine, trainable)
        count += 1
        pruned |= min(densities) <= SPARSE
    return _Whole(count, pruned, reasons)


def _each_layer(model: nn.Module, make: Callable[[Linear], Any] | None, break_even: float) -> _Count:
    """Replace the pruned linear layers, wherever they are, that are sparse enough to gain by it.

    A packed layer that is not sparse enough, or that cannot be replaced, becomes a dense one: unpacking it
    for each call would be slower still. After an error no layer has changed.
    """
    new: dict[nn.Module, nn.Module] = {}
    replaced = dense = 0
    layer_places = places(model)
    tables = {id(module.weight) for module in layer_places if isinstance(module, nn.Embedding)}
    for module, module_places in layer_places.items():
        if id(getattr(module, "weight", None)) in tables:
            continue  # a decoder tied to a table, which stays in memory anyway, its zeros those of padding
        density = _density(module)
        if density is None or (density > SPARSE and not isinstance(module, PackedLinear)):
            continue
        if make is not None and density <= break_even and is_replaceable(module, module_places):
            with engine_errors(f"{module_places[0].dotted}: "):
                layer_engine = make(linear_of(module))
            weight = module.get_parameter("weight")
            dtype = module.dtype if isinstance(module, PackedLinear) else weight.dtype
            new[module] = SparseLinear(layer_engine, dtype, weight.requires_grad)
            replaced += 1
        else:
            dense += 1
            if isinstance(module, PackedLinear):
                new[module] = dense_of(module)
    for module, instead in new.items():
        for place in layer_places[module]:
            setattr(place.parent, place.name, instead)
    return _Count(replaced, dense)


def _density(module: nn.Module) -> float | None:
    """Return the share of a linear layer's weights that are not zero; None for another module."""
    if isinstance(module, PackedLinear):
        return header_of(module).kept / math.prod(module.shape)
    if not is_linear(module):
        return None
    weight: Any = module.weight  # no parameter where it is parametrized
    return int(torch.count_nonzero(weight)) / weight.numel() if weight.numel() else None


def _describe(count: _Count) -> str:
    if not count.replaced and not count.dense:
        return "no linear layer in it is pruned, and it stays as it is"
    message = f"its pruned linear layers run one by one, {count.replaced} of them"
    if count.dense:
        message += f"; {count.dense} stay dense: too many weights remain, or they do more than a linear layer"
    return message


def _say(message: str) -> None:
    warnings.warn(message, FinepruneWarning, stacklevel=4)
