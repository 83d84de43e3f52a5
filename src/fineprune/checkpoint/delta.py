"""What a fine-pruned model adds to a base that the user has: masks, changed values, the head.

A matrix whose surviving weights are the base's own (fine-pruned with frozen weights) is stored as
its mask alone; one that changed as its values and positions; what is the base's own, not at all.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import fineprune
from fineprune._files import staged, write_json
from fineprune.checkpoint import codec, packing
from fineprune.checkpoint.compact import (
    ABOUT,
    Compact,
    check_place,
    compare_outputs,
    compare_weights,
    finalized,
)
from fineprune.errors import FinepruneError
from fineprune.pruning.pruner import Pruner
from fineprune.pruning.summary import summary

# Not model.safetensors: `from_pretrained` alone then finds no weights and stops.
WEIGHTS = "delta.safetensors"


def save_delta(
    model: "PreTrainedModel | Pruner",
    folder: str | Path,
    base: str | Path,
    tokenizer: Any = None,
    values: packing.Values = "float32",
    probe: Mapping[str, Tensor] | None = None,
) -> Compact:
    """Write what `model` adds to the pre-trained `base`, a folder or a hub name.

    `values` and `probe` as in `save_compact`; matrices that are the base's under a mask are
    exact whatever `values` says. `fineprune.load` puts the model together again, from the base under
    the name it has here or from `base=`; it compares a hash of what it takes from the base. Verified
    by loading before it appears. Raises `FinepruneError` as `save_compact` does, and where `base`
    does not load.
    """
    folder = Path(folder)
    packing.check_types(values, "keep")
    check_place(folder)
    model = finalized(model)
    below = _state(_base_model(type(model), base, model.config, model.dtype))
    state = _state(model)
    stored, of_base, kept = _differences(state, below, values)
    with staged(folder) as staging:
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        save_file(stored, staging / WEIGHTS, packing.manifest(stored, kept))
        left = summary(model)
        about: dict[str, Any] = {
            "fineprune": fineprune.__version__,
            "architecture": type(model).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "values": values,
            "density": left.density,
            "kept": left.kept,
            "total": left.total,
            "bytes": (staging / WEIGHTS).stat().st_size,
            "base": {"name": str(base), "sha256": _hash(below, of_base), "tensors": of_base},
        }
        write_json(staging / ABOUT, about)
        reloaded = load_delta(staging, type(model), about)
        compare_weights(model, reloaded, values, "keep")
        changed = compare_outputs(model, reloaded, probe, values == "float32")
    dense = sum(tensor.nbytes for tensor in state.values())
    return Compact(folder, about["bytes"], dense, left.density, changed)


def load_delta(
    folder: Path, kind: Any, about: Mapping[str, Any], base: str | Path | None = None
) -> PreTrainedModel:
    """Base + delta, of class `kind`; `about` is the folder's fineprune.json."""
    try:
        name, expected, of_base = (about["base"][key] for key in ("name", "sha256", "tensors"))
        dtype = getattr(torch, about["dtype"])
        config = transformers.AutoConfig.from_pretrained(folder)
    except (KeyError, TypeError, AttributeError, OSError, ValueError) as error:
        raise FinepruneError(f"{folder}: not a whole delta ({error})") from error
    model = _base_model(kind, base or name, config, dtype)
    state = _state(model)
    if not set(of_base) <= set(state) or _hash(state, of_base) != expected:
        raise FinepruneError(
            f"{base or name}: not the base that {folder} was made against, its hash differs; "
            "give the right one with base="
        )
    path = folder / WEIGHTS
    packing.verify([path], {key: tuple(tensor.shape) for key, tensor in state.items()})
    stored = load_file(path)
    if missing := set(state) - set(stored) - set(of_base):
        raise FinepruneError(f"{path}: {min(missing)} is in neither the delta nor the base")
    with torch.no_grad():
        for key, tensor in stored.items():
            if key not in state:
                raise FinepruneError(f"{path}: the model of config.json has no {key}")
            state[key].copy_(_restored(tensor, state[key]))
    return model


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    """What makes the model, each tensor once: parameters, and the buffers that are saved."""
    whole = model.state_dict()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in whole}
    return {name: tensor.detach() for name, tensor in model.named_parameters()} | buffers


def _base_model(kind: Any, base: str | Path, config: Any, dtype: torch.dtype) -> Any:
    """The base's weights in a model of class `kind`; a head that the base lacks is random, and replaced."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # that report would tell the user to train the head
    try:
        return kind.from_pretrained(base, config=config, dtype=dtype)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FinepruneError(f"base={str(base)!r}: cannot be loaded as {kind.__name__} ({reason})") from error
    finally:
        transformers.logging.set_verbosity(before)


def _differences(
    state: Mapping[str, Tensor], below: Mapping[str, Tensor], values: packing.Values
) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """What to store, the names of what is taken from the base, and what the manifest says."""
    stored: dict[str, Tensor] = {}
    of_base: list[str] = []
    pruned: list[str] = []
    kept = total = 0
    for key in sorted(state):
        tensor, there = state[key].cpu(), below[key].cpu()
        mask = tensor != 0
        if torch.equal(tensor, there):
            of_base.append(key)
            continue
        if tensor.ndim < 2 or mask.float().mean() >= packing.SPARSE:
            stored[key] = tensor.contiguous()
            continue
        if torch.equal(tensor, torch.where(mask, there, 0)):
            of_base.append(key)
            stored[key] = torch.from_numpy(codec.encode(mask.float().numpy(), "mask"))
        else:
            stored[key] = packing.pack(key, tensor, values)
        pruned.append(key)
        kept += int(mask.sum())
        total += mask.numel()
    return stored, of_base, {"pruned": pruned, "kept": kept, "total": total}


def _restored(tensor: Tensor, there: Tensor) -> Tensor:
    """A stored tensor as the model's: the base's under a mask, unpacked, or as it is."""
    if not packing.is_blob(tensor) or there.ndim == 1:
        return tensor
    unpacked = packing.unpack(tensor, there.shape)
    masked = codec.read_header(tensor.numpy()).values == "mask"
    return torch.where(unpacked != 0, there.cpu(), 0) if masked else unpacked


def _hash(state: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in names:
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
