"""Make a small batch for any model, and compare the outputs of two models for it."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fineprune._messages import one_line
from fineprune.errors import FinepruneError


def probe_inputs(model: Any, length: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs for a transformers model, the same ones at each call: two rows, the first padded.

    They are made from the config: token ids, pixels or audio samples, by the main input of the model.

    Args:
        model: the model.
        length: tokens of a text, if the model takes so many; a sound has 250 samples for each.
        seed: of the random values.

    Raises:
        FinepruneError: the main input of the model is of another kind.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    text = config.get_text_config()
    main = model.main_input_name
    inputs: dict[str, Tensor] = {}
    if main == "input_ids":
        limit = getattr(text, "max_position_embeddings", None) or 0
        length = min(length, limit) if limit > 0 else length  # XLNet has no limit, and says -1
        # The classifier of a decoder takes only one row if there is no token to pad with.
        rows = 1 if getattr(text, "pad_token_id", None) is None else 2
        inputs["input_ids"] = torch.randint(0, text.vocab_size, (rows, length), generator=generator)
        inputs["attention_mask"] = torch.ones(rows, length, dtype=torch.long)
        inputs["attention_mask"][0, length // 2 :] = 0
    elif main == "pixel_values" and hasattr(config, "image_size") and hasattr(config, "num_channels"):
        sides = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
        inputs["pixel_values"] = torch.randn(2, config.num_channels, *sides, generator=generator)
    elif main == "input_values":
        inputs["input_values"] = torch.randn(2, 250 * length, generator=generator)
    else:
        raise FinepruneError(
            f"{type(model).__name__} takes {main}, and no example of it can be made up; give one with probe="
        )
    if config.is_encoder_decoder:
        shape = inputs["input_ids"].shape if main == "input_ids" else (2, 4)
        inputs["decoder_input_ids"] = torch.randint(0, text.vocab_size, shape, generator=generator)
        if main == "input_ids" and isinstance(eos := getattr(text, "eos_token_id", None), int):
            # A classifier reads the end token of each text, and requires equally many in all texts.
            ids = inputs["input_ids"]
            ids[ids == eos] = (eos + 1) % text.vocab_size
            ids[:, -1] = eos
    floats = {torch.float32: model.dtype}
    return {name: entry.to(model.device, floats.get(entry.dtype)) for name, entry in inputs.items()}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards restore the mode of each module."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@torch.no_grad()
def outputs(model: nn.Module, inputs: Mapping[str, Tensor], blocks: Iterable[nn.Module] = ()) -> list[Tensor]:
    """Return all floating-point outputs in evaluation mode, in order, as float32; restore the mode.

    After them come the hidden states that `blocks` return, at each use of a block.
    """
    states: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states.extend(tensor.clone() for tensor in tensors_in(output)[:1])

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        with evaluating(model), without_autocast(model):
            answers = tensors_in(model(**inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return [tensor.float() for tensor in answers + states if tensor.is_floating_point()]


def without_autocast(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keep an autocast that the caller is in from rounding the answers."""
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    return torch.autocast(device, enabled=False)


def checked_outputs(
    model: nn.Module, inputs: Mapping[str, Tensor], blocks: Iterable[nn.Module] = ()
) -> list[Tensor]:
    """Return `outputs`.

    Raises:
        FinepruneError: the model does not take the inputs.
    """
    try:
        return outputs(model, inputs, blocks)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
        raise FinepruneError(
            f"{type(model).__name__} does not take the inputs to compare outputs on "
            f"({one_line(error, 200)}); give fitting ones with probe="
        ) from error


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Hold the float16 and bfloat16 tensors of a model as float32 in the block; restore the types by name."""
    halves = (torch.float16, torch.bfloat16)
    before = {name: tensor.dtype for name, tensor in _named(model) if tensor.dtype in halves}
    try:
        _cast(model, dict.fromkeys(before, torch.float32))
        yield
    finally:
        _cast(model, before)


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _cast(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    for name, tensor in _named(model):
        if name in types:
            tensor.data = tensor.data.to(types[name])


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest |a - b| over all outputs, relative to the largest |a| of that output."""
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return float("nan")
    worst = [
        float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
        for a, b in zip(ours, theirs, strict=True)
        if a.numel()
    ]
    return float("nan") if any(map(math.isnan, worst)) else max(worst, default=float("nan"))


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of nested mappings and sequences, in order; what else is there is left out."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for entry in value for tensor in tensors_in(entry)]
    return []  # caches and other objects
