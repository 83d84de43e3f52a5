"""Train LoRA on a model with zeros: W' = (W + s B A) ⊙ M, so that the merged model keeps the zeros.

A layer of peft adds s B A x to the output of its base layer W, and merging this fills every zero.
`hold_zeros` puts the mask on s B A itself, in the forward pass and in the merge. M is read from W, whose
zeros do not change while adapters train, so nothing is stored. The file of an adapter stays an ordinary one;
loaded without `hold_zeros` it gives other outputs, so merge it before you share it.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from fineprune.errors import FinepruneError


def hold_zeros(model: nn.Module) -> int:
    """Let the LoRA adapters of a peft model change only weights that are not zero, in place.

    `prepare` with `method="keep_zeros"` calls it; call it yourself for an adapter that was loaded later. A
    masked update costs its layer a matrix of W's size in each forward pass.

    Returns:
        The number of layers whose adapters are masked; layers without a zero stay as they are.

    Raises:
        FinepruneError: an adapter is of a kind that cannot be masked.
    """
    layers = {name: layer for name, layer in adapted_layers(model) if _has_zeros(_base(layer))}
    for name, layer in layers.items():
        if not isinstance(layer, _lora().Linear) or any(
            not isinstance(variant, _MaskedUpdate) for variant in layer.lora_variant.values()
        ):
            raise FinepruneError(
                f"{name}: zeros can only be kept under plain LoRA on linear layers, not under "
                f"{type(layer).__name__} or a variant such as DoRA; leave it out of target_modules"
            )
    for layer in layers.values():
        layer.lora_variant.update({adapter: _MaskedUpdate() for adapter in layer.lora_A})
    return len(layers)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and module of each layer of peft that wraps a layer with a weight, except embeddings."""
    tuners: Any = sys.modules.get("peft.tuners.tuners_utils")  # a process with such a model has imported it
    for name, module in model.named_modules() if tuners else ():
        if isinstance(module, tuners.BaseTunerLayer) and not isinstance(_base(module), nn.Embedding):
            yield name, module


def own_parts(model: nn.Module) -> set[nn.Module]:
    """Return the modules that adapters added to a model: all inside their layers except the base layers."""
    return {
        part
        for _, layer in adapted_layers(model)
        for part in set(layer.modules()) - set(_base(layer).modules())
    }


def _base(layer: Any) -> nn.Module:
    base: nn.Module = layer.get_base_layer()
    return base


def _has_zeros(base: nn.Module) -> bool:
    weight = getattr(base, "weight", None)
    return not isinstance(weight, Tensor) or not bool((weight != 0).all())


def _lora() -> Any:
    return sys.modules["peft.tuners.lora"]


class _MaskedUpdate:
    """A variant of LoRA for peft, with the methods of `peft.tuners.lora.layer.LoraVariant`."""

    def supports_lora_conversion(self) -> bool:
        return False

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        update, bias = _update(module, active_adapter), module.lora_B[active_adapter].bias
        update = update.T if module.fan_in_fan_out else update
        bias = None if bias is None else bias * module.scaling[active_adapter]
        return result + functional.linear(module.lora_dropout[active_adapter](x), update, bias)

    @staticmethod
    @torch.no_grad()
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        if parametrize.is_parametrized(module.get_base_layer(), "weight"):
            raise FinepruneError("adapters are merged into an ordinary model: call fineprune.finalize first")
        merged: Tensor = orig_weight + _update(module, active_adapter).to(orig_weight.dtype)
        return merged

    @classmethod
    @torch.no_grad()
    def merge_unsafe(cls, module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.copy_(cls.merge_safe(module, active_adapter, orig_weight))

    @staticmethod
    @torch.no_grad()
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        before: Tensor = orig_weight - _update(module, active_adapter).to(orig_weight.dtype)
        return before


def _update(module: Any, adapter: str) -> Tensor:
    """Return s B A ⊙ M in the shape of the weight of the base layer."""
    update: Tensor = module.get_delta_weight(adapter) * (module.get_base_layer().weight.detach() != 0)
    return update
