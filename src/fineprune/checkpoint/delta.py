"""Store a fine-pruned model as the difference from a base that the user has: masks, changed values, the head.

A matrix whose surviving weights equal the base's (fine-pruned with frozen weights) is stored as its mask
alone, a changed matrix as its values and positions, and a tensor equal to the base's not at all.
"""

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from fineprune._files import staged, write_json
from fineprune._messages import one_line
from fineprune._version import __version__
from fineprune.checkpoint import packing as packed
from fineprune.checkpoint.compact import (
    ABOUT,
    Compact,
    check_place,
    check_tokenizer,
    compare_outputs,
    compare_weights,
    finalized,
)
from fineprune.checkpoint.completeness import check_body
from fineprune.checkpoint.model_files import check_files, check_listed, checksums
from fineprune.checkpoint.packing import Packing, Values
from fineprune.checkpoint.provenance import Provenance
from fineprune.checkpoint.remote_code import config_of
from fineprune.checkpoint.transformers_hook import METHOD
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.low_rank import is_low_rank
from fineprune.pruning.origin import origin_of
from fineprune.pruning.pruner import Pruner
from fineprune.pruning.summary import summary
from fineprune.pruning.targets import refuse_not_finite
from fineprune_runtime import codec

# Not model.safetensors: `from_pretrained` alone then finds no weights and stops.
WEIGHTS = "delta.safetensors"


class _Base(NamedTuple):
    """The base, loaded into the class of the model."""

    model: PreTrainedModel
    missing: set[str]
    """Weights of the model that the base lacks, such as a head; random here."""
    info: Mapping[str, Any]
    """What `from_pretrained` says of all weights."""


class _Difference(NamedTuple):
    """How a model differs from its base."""

    stored: dict[str, Tensor]
    """The tensors of the file."""
    of_base: list[str]
    """Names of the tensors whose values are the base's, as they are or under a mask."""
    counts: dict[str, Any]
    """The manifest's part: names of the pruned matrices, numbers of kept and of all weights."""


def save_delta(
    model: "PreTrainedModel | Pruner",
    folder: str | Path,
    base: str | Path,
    tokenizer: Any = None,
    values: Values = "float32",
    *,
    scores: Mapping[str, float] | None = None,
    command: str | None = None,
    config: PruningConfig | None = None,
    probe: Mapping[str, Tensor] | None = None,
) -> Compact:
    """Write only what distinguishes `model` from the pre-trained `base`, a folder or a hub name.

    The other arguments are those of `save_compact`; matrices that are the base's under a mask are exact
    whatever `values` is. `fineprune.load` rebuilds the model from the base, found under the name given here
    or by `base=`, and compares a hash of every tensor that it takes from it. The folder is verified by
    loading it before it appears.

    Raises:
        FinepruneError: as `save_compact`, where `base` does not load, and where `folder` is `base`.
    """
    provenance = Provenance(scores, None, command, config)
    return write_delta(model, Path(folder), base, Packing(values), provenance, tokenizer, probe)


def write_delta(
    model: "PreTrainedModel | Pruner",
    folder: Path,
    base: str | Path,
    packing: Packing,
    provenance: Provenance,
    tokenizer: Any = None,
    probe: Mapping[str, Tensor] | None = None,
) -> Compact:
    """Do the work of `save_delta`; a delta cannot pack the embeddings."""
    if packing.embeddings != "keep":
        raise FinepruneError(f"embeddings={packing.embeddings!r}: a delta takes the base's; leave it out")
    check_place(folder)
    check_tokenizer(tokenizer)
    if os.path.isfile(Path(base, "model", "config.json")):  # the base is a run
        base = Path(base, "model")
    if folder.resolve() == Path(base).resolve():
        raise FinepruneError(f"{folder}: is the base, which the delta needs; name another folder")
    provenance = provenance.completed_by(model)
    model = finalized(model)
    refuse_not_finite(model)
    if origin_of(model) is not None or is_low_rank(model):
        what = "was shrunk" if origin_of(model) is not None else "has low-rank layers"
        raise FinepruneError(
            f"{type(model).__name__} {what}, so its matrices are not those of {base}; save it whole, "
            "with save_compact"
        )
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.__dict__.pop("quantization_config", None)  # of a compact model: neither base nor delta is one
    state = _state(model)
    loaded = _base_model(type(model), base, config, model.dtype)
    check_body(loaded.model, loaded.info, base, cut=True)  # the model may have fewer layers than its base
    base_state, changes = _differences(model, state, loaded, packing)
    with staged(folder) as staging:
        config.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        counts = changes.counts | {"files": checksums(staging)}
        save_file(changes.stored, staging / WEIGHTS, packed.manifest(changes.stored, counts))
        about = _about(model, packing, provenance, (staging / WEIGHTS).stat().st_size) | {
            "base": {
                "name": os.path.abspath(base) if os.path.isdir(base) else str(base),
                "sha256": _hash(base_state, changes.of_base),
                "tensors": changes.of_base,
            }
        }
        write_json(staging / ABOUT, about)
        reloaded = load_delta(staging, type(model), about)
        compare_weights(model, reloaded, packing)
        changed = compare_outputs(model, reloaded, probe, packing.is_exact)
    dense = sum(tensor.nbytes for tensor in state.values())
    return Compact(folder, about["bytes"], dense, about["density"], changed)


def _if_compact(base: str | Path) -> str:
    """Return what to do with a base that is a folder of packed matrices; "" if it is none."""
    try:
        settings = config_of(Path(base)).get("quantization_config")
        if settings["quant_method"] == METHOD:
            return (
                f"; it is a compact model: write it by fineprune compact {base} FOLDER --format dense, and "
                "give that folder"
            )
    except Exception:  # whatever it is, the caller has said so
        pass
    return ""


def _about(
    model: PreTrainedModel, packing: Packing, provenance: Provenance, file_bytes: int
) -> dict[str, Any]:
    """Return the entries of fineprune.json except the base."""
    stats = summary(model)
    history = provenance.to_dict()
    del history["dense_scores"]
    return {
        "fineprune": __version__,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "values": packing.values,
        "density": stats.density,
        "kept": stats.kept,
        "total": stats.total,
        "bytes": file_bytes,
        **history,
    }


def load_delta(
    folder: Path, kind: Any, about: Mapping[str, Any], base: str | Path | None = None
) -> PreTrainedModel:
    """Return base + delta as a model of class `kind`; `about` is the folder's fineprune.json."""
    try:
        name, expected = str(about["base"]["name"]), about["base"]["sha256"]
        of_base = [str(key) for key in about["base"]["tensors"]]
        dtype = getattr(torch, about["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype {about['dtype']!r}")
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # an odd config.json makes transformers raise anything
        raise FinepruneError(f"{folder}: not a whole delta ({one_line(error)})") from error
    model, missing, _ = _base_model(kind, base or name, config, dtype)
    state = _state(model)
    if not set(of_base) <= set(state) - missing or _hash(state, of_base) != expected:
        raise FinepruneError(
            f"{base or name}: not the base that {folder} was made against, its hash differs; "
            "give the right one with base="
        )
    _restore(state, folder / WEIGHTS, of_base)
    return model


@torch.no_grad()
def _restore(state: Mapping[str, Tensor], path: Path, of_base: list[str]) -> None:
    """Copy the delta of a file over the base's tensors `state`, in place."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    check_listed(path.parent, packed.verify([path], shapes, masks=True))
    stored = load_file(path)
    if missing := set(state) - set(stored) - set(of_base):
        raise FinepruneError(f"{path}: {min(missing)} is in neither the delta nor the base")
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


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return all tensors that make the model, each once: parameters, and the buffers that are saved."""
    saved = model.state_dict()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in saved}
    return {name: tensor.detach() for name, tensor in model.named_parameters()} | buffers


def _base_model(kind: Any, base: str | Path, config: Any, dtype: torch.dtype) -> _Base:
    """Load the base's weights into a model of class `kind`."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # that report would tell the user to train the head
    try:
        check_files(Path(base))
        model, info = kind.from_pretrained(
            base,
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        for key, base_shape, shape in sorted(info["mismatched_keys"]):  # transformers' own error names none
            raise ValueError(f"{key} is {tuple(base_shape)} there, {tuple(shape)} in the model")
        return _Base(model, set(info["missing_keys"]), info)
    except Exception as error:  # by file, by hub and by version
        raise FinepruneError(
            f"base={str(base)!r}: cannot be loaded as {kind.__name__} ({one_line(error)}){_if_compact(base)}"
        ) from error
    finally:
        transformers.logging.set_verbosity(before)


def _differences(
    model: PreTrainedModel, state: Mapping[str, Tensor], base: _Base, packing: Packing
) -> tuple[dict[str, Tensor], _Difference]:
    """Return the base's tensors, and how `state`, the tensors of `model`, differs from them."""
    below = _state(base.model)
    if odd := [key for key in state if key not in below or state[key].shape != below[key].shape]:
        raise FinepruneError(f"{odd[0]}: the class {type(model).__name__} has no such weight by its config")
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    exact = {key for key, entry in model.named_parameters() if id(entry) in tables}
    stored: dict[str, Tensor] = {}
    of_base: list[str] = []
    pruned: list[str] = []
    kept = total = 0
    for key in sorted(state):
        tensor, before = state[key].cpu(), below[key].cpu()
        mask = tensor != 0
        if key not in base.missing and torch.equal(tensor, before):
            of_base.append(key)
            continue
        if tensor.ndim < 2 or mask.float().mean() >= packed.SPARSE:
            stored[key] = tensor.contiguous()
            continue
        if key not in base.missing and torch.equal(tensor, torch.where(mask, before, 0)):
            of_base.append(key)
            stored[key] = torch.from_numpy(codec.encode(mask.float().numpy(), "mask"))
        else:  # an embedding is not rounded
            stored[key] = packed.pack(key, tensor, "float32" if key in exact else packing.values)
        pruned.append(key)
        kept += int(mask.sum())
        total += mask.numel()
    return below, _Difference(stored, of_base, {"pruned": pruned, "kept": kept, "total": total})


def _restored(tensor: Tensor, before: Tensor, of_base: bool) -> Tensor:
    """Return the model's tensor for a stored one: unpacked, the base's under a mask, or unchanged."""
    if not packed.is_blob(tensor) or before.ndim == 1:
        return tensor
    unpacked = packed.unpack(tensor, before.shape)
    masked = codec.read_header(tensor.numpy()).values == "mask"
    if masked and not of_base:
        raise FinepruneError("a mask covers what is not the base's: fineprune.json is of another delta")
    return torch.where(unpacked != 0, before.cpu(), 0) if masked else unpacked


def _hash(state: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in names:
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
