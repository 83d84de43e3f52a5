"""save_compact: pack a pruned model, verify what was written, and only then put it in its place."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from fineprune._files import staged, write_json, write_text
from fineprune._version import __version__
from fineprune.checkpoint import card, packing
from fineprune.checkpoint.transformers_hook import CompactConfig, CompactQuantizer
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed.ranks import is_sharded
from fineprune.pruning.probe import difference, outputs, probe_inputs
from fineprune.pruning.pruner import Pruner, finalize, masked_modules
from fineprune.pruning.summary import summary
from fineprune.pruning.targets import refuse_accelerated

ABOUT = "fineprune.json"
# The largest relative error (2-norm, a matrix at a time) that rounding to a type can explain; a row
# or a value in another's place gives about 1.4.
_ROUNDING = {"float32": 0.0, "float16": 2e-3, "bfloat16": 8e-3, "int8": 0.05, "int4": 0.5}


class Compact(NamedTuple):
    """What `save_compact` wrote."""

    folder: Path
    bytes: int
    """Of the weight files."""
    dense_bytes: int
    """The same model's weights, uncompressed."""
    density: float
    difference: float
    """Largest change of an output on the probe batch, relative to the largest output."""


def save_compact(
    model: "PreTrainedModel | Pruner",
    folder: str | Path,
    tokenizer: Any = None,
    values: packing.Values = "float32",
    embeddings: packing.Embeddings = "keep",
    *,
    scores: Mapping[str, float] | None = None,
    dense_scores: Mapping[str, float] | None = None,
    command: str | None = None,
    config: PruningConfig | None = None,
    probe: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = "50GB",
) -> Compact:
    """Write a pruned model such that its zeros take no room, loadable by `from_pretrained`.

    `model` is a pruner or a model that is being pruned (a finalized copy is written, training can go on),
    a finalized one, or any that merely has zeros. `values` is the type of the sparse matrices'
    values: "float32" is exact, "float16" and "bfloat16" round, "int8" rounds with a scale for each row.
    `embeddings` is the type of the embedding tables: "keep", "float16", "int8", "int4" (a scale for each
    row). Everything else stays as it is. `scores`, `dense_scores` and `command` go into fineprune.json and
    the model card. `probe` are inputs to compare the outputs on; made up where left out.

    The folder is complete and verified before it appears: every weight compared, and the outputs
    of the reloaded model with those of `model`. A model that was there before is replaced in one
    step. Raises `FinepruneError` where nothing is sparse, a value does not fit its type, `folder` holds
    something else than a model, or what was written does not load to the same model.
    """
    folder = Path(folder)
    packing.check_types(values, embeddings)
    check_place(folder)
    scores, dense_scores = plain_scores("scores", scores), plain_scores("dense_scores", dense_scores)
    config = config or (model.config if isinstance(model, Pruner) else None)
    model = finalized(model)
    with staged(folder) as staging:
        about = _write(model, staging, values, embeddings, max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        kind: Any = type(model)
        reloaded = kind.from_pretrained(staging, dtype=model.dtype, local_files_only=True)
        compare_weights(model, reloaded, values, embeddings)
        changed = compare_outputs(model, reloaded, probe, values == "float32" and embeddings == "keep")
        about |= {
            "pruning": None if config is None else config.to_dict(),
            "scores": scores,
            "dense_scores": dense_scores,
            "command": command,
            "output_difference": changed,
        }
        write_json(staging / ABOUT, about)
        write_text(staging / "README.md", card.model_card(about, type(model).__name__))
    return Compact(folder, about["bytes"], about["dense_bytes"], about["density"], changed)


def finalized(model: "PreTrainedModel | Pruner") -> PreTrainedModel:
    """An ordinary model: a folded copy of one that is being pruned, else the model itself."""
    if isinstance(model, Pruner):
        model = model.model
    if not isinstance(model, PreTrainedModel):
        raise FinepruneError(f"model={type(model).__name__}: a transformers model or a Pruner is needed")
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise FinepruneError(
            f"model={type(model).__name__}: it is spread over processes; load what gather_state_dict gives "
            "into a model of one process, and save that"
        )
    refuse_accelerated(model, "save it before accelerate, or load it again without")
    if any(map(packing.is_packed, model.modules())):
        raise FinepruneError("this model's matrices are packed: load it without packed=True")
    return finalize(copy.deepcopy(model)) if any(True for _ in masked_modules(model)) else model


def check_place(folder: Path) -> None:
    """Raise where something else than a model would be overwritten; make the parent folder."""
    if folder.exists() and not folder.is_dir():
        raise FinepruneError(f"{folder}: is a file; name a folder to write to")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise FinepruneError(f"{folder}: not empty, and no model that could be replaced; name another folder")
    if Path.cwd().is_relative_to(folder.resolve()):  # this process would be left in a deleted folder
        raise FinepruneError(f"{folder}: is, or holds, the current folder; name a folder inside it")
    if inside := sorted(entry.name for entry in folder.glob("*/")):
        raise FinepruneError(f"{folder}: holds other folders, {inside[0]} for one; name another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinepruneError(f"{folder}: cannot be made ({error.strerror})") from error


def plain_scores(what: str, scores: Mapping[str, float] | None) -> dict[str, float] | None:
    """The scores as plain floats, whatever kind of number they are."""
    if scores is None:
        return None
    plain = {}
    for name, score in scores.items():
        try:
            plain[name] = float(score)
        except (TypeError, ValueError):
            plain[name] = math.nan
        if not math.isfinite(plain[name]):
            raise FinepruneError(f"{what}: {name} is {score!r}; give a finite number")
    return plain


def _write(
    model: PreTrainedModel, staging: Path, values: Any, embeddings: Any, max_shard_size: int | str
) -> dict[str, Any]:
    """Write config and weights; returns what is to be said of them."""
    left = summary(model)
    before = model.config.__dict__.get("quantization_config"), model.__dict__.get("hf_quantizer")
    ours = CompactConfig(values, embeddings)
    model.config.quantization_config = ours
    model.hf_quantizer = CompactQuantizer(ours)
    try:
        model.save_pretrained(staging, max_shard_size=max_shard_size)
    finally:
        for place, name, value in zip(
            (model.config, model), ("quantization_config", "hf_quantizer"), before, strict=True
        ):
            if value is None:
                delattr(place, name)
            else:
                setattr(place, name, value)
    files = sorted(staging.glob("*.safetensors"))
    if not packing.verify(files)["pruned"]:
        raise FinepruneError(
            f"{type(model).__name__} has nothing to pack: no linear layer has 6 % zeros; prune it first"
        )
    unique = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    return {
        "fineprune": __version__,
        "transformers": transformers.__version__,
        "architecture": type(model).__name__,
        "values": values,
        "embeddings": embeddings,
        "density": left.density,
        "kept": left.kept,
        "total": left.total,
        "parameters": left.parameters,
        "bytes": sum(file.stat().st_size for file in files),
        "dense_bytes": sum(entry.numel() * entry.element_size() for entry in unique.values()),
    }


@torch.no_grad()
def compare_weights(model: nn.Module, reloaded: nn.Module, values: str, embeddings: str) -> None:
    """Raise where a reloaded weight differs by more than rounding to its type explains."""
    tables = {id(entry.weight) for entry in model.modules() if isinstance(entry, nn.Embedding)}
    after = dict(reloaded.named_parameters())
    for name, weight in model.named_parameters():
        asked = ("float32" if embeddings == "keep" else embeddings) if id(weight) in tables else values
        there = after[name].to(weight.device)
        loaded_as = there.dtype
        if loaded_as != weight.dtype:  # to compare like with like, outputs too
            there = after[name].data = there.to(weight.dtype)
        moved = float(torch.linalg.vector_norm((there - weight).double()))
        allowed = _ROUNDING[asked] * float(torch.linalg.vector_norm(weight.double()))
        if loaded_as != weight.dtype and moved > allowed:
            raise FinepruneError(
                f"{name}: is {weight.dtype}, and transformers loads it as {loaded_as}: cast the whole model "
                "to one type, with its .to(dtype)"
            )
        if there.shape != weight.shape or not moved <= allowed:
            raise FinepruneError(
                f"{name}: what was written differs from the model by {moved:g} in the 2-norm, "
                f"allowed is {allowed:g}; nothing was saved"
            )


def compare_outputs(
    model: PreTrainedModel, reloaded: PreTrainedModel, probe: Mapping[str, Tensor] | None, exact: bool
) -> float:
    """How far the two models' answers to the probe lie apart; raises where they must not."""
    inputs = probe_inputs(model) if probe is None else probe
    try:
        ours = outputs(model, inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FinepruneError(
            f"{type(model).__name__} does not take the inputs to compare outputs on ({reason}); "
            "give fitting ones with probe="
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in ours):
        raise FinepruneError(
            f"{type(model).__name__} answers the inputs to compare outputs on with nan or inf; "
            "nothing was saved"
        )
    changed = difference(ours, outputs(reloaded.to(model.device), inputs))
    if not changed <= (1e-6 if exact else float("inf")):  # a NaN is a mismatch too
        raise FinepruneError(
            f"the written model answers differently, by {changed:g} of the largest output; nothing was saved"
        )
    return changed
