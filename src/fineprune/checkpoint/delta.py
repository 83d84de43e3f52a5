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
from torch import Tensor, nn
from transformers import PreTrainedModel

from fineprune._files import staged, write_json
from fineprune._messages import one_line
from fineprune._version import __version__
from fineprune.checkpoint import packing
from fineprune.checkpoint.compact import (
    ABOUT,
    Compact,
    check_place,
    compare_outputs,
    compare_weights,
    finalized,
    plain_scores,
)
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.pruner import Pruner
from fineprune.pruning.summary import summary
from fineprune_runtime import codec

# Not model.safetensors: `from_pretrained` alone then finds no weights and stops.
WEIGHTS = "delta.safetensors"


def save_delta(
    model: "PreTrainedModel | Pruner",
    folder: str | Path,
    base: str | Path,
    tokenizer: Any = None,
    values: packing.Values = "float32",
    *,
    scores: Mapping[str, float] | None = None,
    command: str | None = None,
    config: PruningConfig | None = None,
    probe: Mapping[str, Tensor] | None = None,
) -> Compact:
    """Write what `model` adds to the pre-trained `base`, a folder or a hub name.

    The arguments are those of `save_compact`; matrices that are the base's under a mask are exact
    whatever `values` says. `fineprune.load` puts the model together again, from the base under
    the name it has here or from `base=`; it compares a hash of what it takes from the base. Verified
    by loading before it appears. Raises `FinepruneError` as `save_compact` does, where `base` does not
    load, and where `folder` is `base`.
    """
    folder = Path(folder)
    packing.check_types(values, "keep")
    check_place(folder)
    if folder.resolve() == Path(base).resolve():
        raise FinepruneError(f"{folder}: is the base, which the delta needs; name another folder")
    pruning = config or (model.config if isinstance(model, Pruner) else None)
    model = finalized(model)
    settings = copy.deepcopy(model.config)
    settings.architectures = [type(model).__name__]
    settings.__dict__.pop("quantization_config", None)  # of a compact model: neither base nor delta is one
    state = _state(model)
    there, fresh = _base_model(type(model), base, settings, model.dtype)
    below = _state(there)
    if odd := [key for key in state if key not in below or state[key].shape != below[key].shape]:
        raise FinepruneError(f"{odd[0]}: the class {type(model).__name__} has no such weight by its config")
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    exact = {key for key, entry in model.named_parameters() if id(entry) in tables}
    stored, of_base, kept = _differences(state, below, fresh, exact, values)
    with staged(folder) as staging:
        settings.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        save_file(stored, staging / WEIGHTS, packing.manifest(stored, kept))
        left = summary(model)
        about: dict[str, Any] = {
            "fineprune": __version__,
            "architecture": type(model).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "values": values,
            "density": left.density,
            "kept": left.kept,
            "total": left.total,
            "bytes": (staging / WEIGHTS).stat().st_size,
            "pruning": None if pruning is None else pruning.to_dict(),
            "scores": plain_scores("scores", scores),
            "command": command,
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
        name, expected = str(about["base"]["name"]), about["base"]["sha256"]
        of_base = [str(key) for key in about["base"]["tensors"]]
        dtype = getattr(torch, about["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype {about['dtype']!r}")
        config = transformers.AutoConfig.from_pretrained(folder)
    except Exception as error:  # an odd config.json makes transformers raise anything
        raise FinepruneError(f"{folder}: not a whole delta ({one_line(error)})") from error
    model, fresh = _base_model(kind, base or name, config, dtype)
    state = _state(model)
    if not set(of_base) <= set(state) - fresh or _hash(state, of_base) != expected:
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
            restored = _restored(tensor, state[key], key in of_base)
            if restored.shape != state[key].shape:
                raise FinepruneError(
                    f"{path}: {key} is {tuple(restored.shape)}, in the model of config.json "
                    f"{tuple(state[key].shape)}; fetch both again"
                )
            state[key].copy_(restored)
    return model


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    """What makes the model, each tensor once: parameters, and the buffers that are saved."""
    whole = model.state_dict()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in whole}
    return {name: tensor.detach() for name, tensor in model.named_parameters()} | buffers


def _base_model(kind: Any, base: str | Path, config: Any, dtype: torch.dtype) -> tuple[Any, set[str]]:
    """The base's weights in a model of class `kind`, and the names that the base lacks: those are random."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # that report would tell the user to train the head
    try:
        model, info = kind.from_pretrained(
            base, config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
        )
        for key, there, here in sorted(info["mismatched_keys"]):  # transformers' own error would name none
            raise ValueError(f"{key} is {tuple(there)} there, {tuple(here)} in the model")
        return model, set(info["missing_keys"])
    except Exception as error:  # by file, by hub and by version
        raise FinepruneError(
            f"base={str(base)!r}: cannot be loaded as {kind.__name__} ({one_line(error)})"
        ) from error
    finally:
        transformers.logging.set_verbosity(before)


def _differences(
    state: Mapping[str, Tensor],
    below: Mapping[str, Tensor],
    fresh: set[str],
    exact: set[str],
    values: packing.Values,
) -> tuple[dict[str, Tensor], list[str], dict[str, Any]]:
    """What to store, the names of what is taken from the base, and what the manifest says.

    Of the names `fresh` the base has nothing; those `exact`, embeddings, are not rounded to `values`.
    """
    stored: dict[str, Tensor] = {}
    of_base: list[str] = []
    pruned: list[str] = []
    kept = total = 0
    for key in sorted(state):
        tensor, there = state[key].cpu(), below[key].cpu()
        mask = tensor != 0
        if key not in fresh and torch.equal(tensor, there):
            of_base.append(key)
            continue
        if tensor.ndim < 2 or mask.float().mean() >= packing.SPARSE:
            stored[key] = tensor.contiguous()
            continue
        if key not in fresh and torch.equal(tensor, torch.where(mask, there, 0)):
            of_base.append(key)
            stored[key] = torch.from_numpy(codec.encode(mask.float().numpy(), "mask"))
        else:
            stored[key] = packing.pack(key, tensor, "float32" if key in exact else values)
        pruned.append(key)
        kept += int(mask.sum())
        total += mask.numel()
    return stored, of_base, {"pruned": pruned, "kept": kept, "total": total}


def _restored(tensor: Tensor, there: Tensor, of_base: bool) -> Tensor:
    """A stored tensor as the model's: the base's under a mask, unpacked, or as it is."""
    if not packing.is_blob(tensor) or there.ndim == 1:
        return tensor
    unpacked = packing.unpack(tensor, there.shape)
    masked = codec.read_header(tensor.numpy()).values == "mask"
    if masked and not of_base:
        raise FinepruneError("a mask lies over what is not the base's: fineprune.json is of another delta")
    return torch.where(unpacked != 0, there.cpu(), 0) if masked else unpacked


def _hash(state: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in names:
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
