"""save_compact: pack a pruned model, verify the written files, and only then put them in their place."""

import copy
import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from fineprune._files import staged, write_json, write_text
from fineprune._version import __version__
from fineprune.checkpoint import shapes
from fineprune.checkpoint.card import model_card
from fineprune.checkpoint.model_files import read_json, write_checksums
from fineprune.checkpoint.packing import SPARSE, Embeddings, Packing, Values, is_packed, verify
from fineprune.checkpoint.provenance import Provenance
from fineprune.checkpoint.sentence_files import read_sentence_files
from fineprune.checkpoint.sentence_models import answers, reopen, save_sentence_model, sentence_kind
from fineprune.checkpoint.transformers_hook import written_by
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning import progress
from fineprune.pruning.adapters import adapted_layers
from fineprune.pruning.distributed.ranks import is_sharded
from fineprune.pruning.finalizing import finalize, masked_modules
from fineprune.pruning.origin import origin_of
from fineprune.pruning.probe import checked_outputs, difference, outputs, probe_inputs
from fineprune.pruning.pruner import Pruner
from fineprune.pruning.summary import summary
from fineprune.pruning.targets import refuse_accelerated, refuse_compiled, refuse_meta, refuse_not_finite
from fineprune.pruning.wrapped import transformer_of

ABOUT = "fineprune.json"
MAX_SHARD_SIZE = "50GB"
# The largest relative error (2-norm of one matrix) that rounding to a type explains; a row or a value in the
# wrong place gives about 1.4.
_ROUNDING = {"float32": 0.0, "float16": 2e-3, "bfloat16": 8e-3, "int8": 0.05, "int4": 0.5}
_FINER = {"int4": "int8", "int8": "float16"}


class Compact(NamedTuple):
    """The folder that `save_compact` wrote, and its size."""

    folder: Path
    bytes: int
    """Of the weight files."""
    dense_bytes: int
    """The same model's weights, uncompressed."""
    density: float
    difference: float
    """Largest change of an output on the probe batch, relative to the largest output."""


def save_compact(
    model: "PreTrainedModel | Pruner | nn.Module",
    folder: str | Path,
    tokenizer: Any = None,
    values: Values = "float32",
    embeddings: Embeddings = "keep",
    *,
    scores: Mapping[str, float] | None = None,
    dense_scores: Mapping[str, float] | None = None,
    command: str | None = None,
    config: PruningConfig | None = None,
    probe: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Compact:
    """Write a pruned model without its zeros, as a folder that `from_pretrained` loads.

    Of a SentenceTransformer or a CrossEncoder it writes the whole folder, which that class opens.

    The folder is complete and verified before it appears: every weight is compared, and the outputs of the
    reloaded model with those of `model`. A model that was there before is replaced in one step.

    Args:
        model: A pruner or a model that is being pruned (a finalized copy is written, and training can go
            on), a finalized model, or any model with zeros. It is of transformers, or a SentenceTransformer
            or CrossEncoder.
        folder: Where to write.
        tokenizer: Saved beside the model.
        values: Type of the sparse matrices' values: "float32" is exact, "float16" and "bfloat16" round,
            "int8" rounds with one scale per row.
        embeddings: Type of the embedding tables: "keep", "float16", "int8" or "int4" (one scale per row).
            All other tensors are stored unchanged.
        scores: Goes into fineprune.json and the model card, as do `dense_scores`, `command` and `config`.
        dense_scores: The scores before pruning.
        command: The command that made the model.
        config: The pruning settings; None: those of a pruner.
        probe: Inputs to compare the outputs on; None: generated ones. A sentence model is also compared by
            the vectors or scores of a few texts.
        max_shard_size: The size from which transformers splits the weights into several files.

    Raises:
        FinepruneError: where nothing is sparse and nothing was shrunk, a value does not fit its type,
            `folder` holds something other than a model, or the written files do not load to the same model.
    """
    packing = Packing(values, embeddings)
    provenance = Provenance(scores, dense_scores, command, config)
    return write_compact(model, Path(folder), packing, provenance, tokenizer, probe, max_shard_size)


def write_compact(
    model: "PreTrainedModel | Pruner | nn.Module",
    folder: Path,
    packing: Packing,
    provenance: Provenance,
    tokenizer: Any = None,
    probe: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Compact:
    """Do the work of `save_compact`."""
    check_place(folder)
    check_tokenizer(tokenizer)
    provenance = provenance.completed_by(model)
    whole = finalized(model, sentences=True)
    refuse_not_finite(whole)
    model = cast(PreTrainedModel, transformer_of(whole))
    with staged(folder) as staging:
        about = _write(whole, model, staging, packing, tokenizer, max_shard_size)
        progress.compare(whole, provenance.config, about["density"])
        opened, reloaded = _reopened(whole, model, staging)
        if getattr(reloaded, "pooler", None) is not None and getattr(model, "pooler", reloaded) is None:
            reloaded.pooler = None  # made without one, which the configuration does not say; `load` sees it
        compare_weights(model, reloaded, packing)
        changed = compare_outputs(model, reloaded, probe, packing.is_exact)
        if opened is not reloaded:
            changed = max(changed, compare_answers(whole, opened, packing.is_exact))
        about |= provenance.to_dict() | {"output_difference": changed}
        write_json(staging / ABOUT, about)
        write_text(staging / "README.md", model_card(about))
    return Compact(folder, about["bytes"], about["dense_bytes"], about["density"], changed)


def finalized(model: Any, sentences: bool = False) -> Any:
    """Return an ordinary model: a folded copy of one that is being pruned, else the model itself.

    Args:
        model: a model or a pruner.
        sentences: allow a SentenceTransformer or a CrossEncoder.
    """
    if isinstance(model, Pruner):
        model = model.model
    refuse_compiled(model)
    if not isinstance(model, PreTrainedModel) and not (sentences and sentence_kind(model)):
        raise FinepruneError(
            f"model={type(model).__name__}: a transformers model or a Pruner is needed"
            + (", or a SentenceTransformer or CrossEncoder" if sentences else "")
        )
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise FinepruneError(
            f"model={type(model).__name__}: it is sharded over processes; load the result of "
            "gather_state_dict into a model of one process, and save that"
        )
    refuse_meta(model)
    for name, _ in adapted_layers(model):
        raise FinepruneError(
            f"{name}: carries an adapter; merge (merge_and_unload) or remove it before the model is saved"
        )
    refuse_accelerated(model, "save it before accelerate, or load it again without")
    if any(map(is_packed, model.modules())):
        raise FinepruneError("this model's matrices are packed: load it without packed=True")
    return finalize(copy.deepcopy(model)) if any(True for _ in masked_modules(model)) else model


def check_tokenizer(tokenizer: Any) -> None:
    """Raise `FinepruneError` for what is no tokenizer, before anything is packed."""
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise FinepruneError(
            f"tokenizer={tokenizer!r}: give a tokenizer, such as AutoTokenizer.from_pretrained(...), or "
            "None; types are given by name, as values='int8'"
        )


def check_place(folder: Path, source: Path | None = None) -> None:
    """Raise where something other than a model would be overwritten; create the parent folder.

    Args:
        folder: The place to write to.
        source: The run or model that is read, if what is written cannot stand for it.
    """
    if source is not None and folder.resolve() in (source.resolve(), (source / "model").resolve()):
        raise FinepruneError(
            f"{folder}: is the model that is read, and would be replaced; name another folder"
        )
    if not os.path.isdir(folder) and os.path.exists(folder):
        raise FinepruneError(f"{folder}: is a file; name a folder to write to")
    there = list(folder.iterdir()) if os.path.isdir(folder) else []
    if there and not (folder / "config.json").is_file():
        raise FinepruneError(f"{folder}: not empty, and no model that could be replaced; name another folder")
    if Path.cwd().is_relative_to(folder.resolve()):  # this process would be left in a deleted folder
        raise FinepruneError(f"{folder}: is, or holds, the current folder; name a folder inside it")
    files = read_sentence_files(folder)
    modules = {module.path for module in files.modules} if files else set()
    if inside := sorted(entry.name for entry in there if entry.is_dir() and entry.name not in modules):
        raise FinepruneError(f"{folder}: holds other folders, for example {inside[0]}; name another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinepruneError(f"{folder}: cannot be made ({error.strerror})") from error


def _write(
    whole: nn.Module,
    model: PreTrainedModel,
    staging: Path,
    packing: Packing,
    tokenizer: Any,
    max_shard_size: int | str,
) -> dict[str, Any]:
    """Write config, weights and tokenizer; return what fineprune.json says of them."""
    stats = summary(model)
    with _written_as(model, packing, max_shard_size):
        try:
            if isinstance(whole, PreTrainedModel):
                whole.save_pretrained(staging)
            else:
                save_sentence_model(whole, staging)
        except RuntimeError:  # transformers', of tensors that are in several places
            _refuse_shared(model)
            raise
    files = sorted(staging.glob("*.safetensors"))
    origin = origin_of(model)
    pruned = verify(files)["pruned"]
    if not pruned and origin is None and not shapes.has_own(model):
        raise FinepruneError(
            f"{type(model).__name__} has nothing to pack: no linear layer has "
            f"{100 * (1 - SPARSE):.0f} % zeros; prune it first, or give another type of values, such as int8"
        )
    if not pruned and packing.embeddings == "keep" and not shapes.has_own(model):
        _write_as_ordinary(staging / "config.json")
    if tokenizer is not None:
        tokenizer.save_pretrained(staging)
    write_checksums(staging)
    sentence_files = read_sentence_files(staging)
    unique = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    about = {
        "fineprune": __version__,
        "transformers": transformers.__version__,
        "architecture": type(model).__name__,
        "values": packing.values,
        "embeddings": packing.embeddings,
        "density": stats.density,
        "kept": stats.kept,
        "total": stats.total,
        "parameters": stats.parameters,
        "bytes": sum(file.stat().st_size for file in files),
        "dense_bytes": sum(entry.nbytes for entry in unique.values()),
    }
    if sentence_files is not None:
        about["sentence_model"] = sentence_files.kind
    if origin is not None:
        about[shapes.KEY] = shapes.to_dict(origin)
    return about


def _refuse_shared(model: Any) -> None:
    """Raise where a module is in two places, which a class that does not say so cannot write or load."""
    first: dict[int, str] = {}
    ties = model.all_tied_weights_keys
    for name, weight in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(weight), name)
        if other != name and not {name, other} & {*ties, *ties.values()}:
            raise FinepruneError(
                f"{other} and {name} are one tensor, which {type(model).__name__} does not write or load so; "
                "give each place a copy (copy.deepcopy)"
            )


def _write_as_ordinary(config: Path) -> None:
    """Let a model without a packed tensor, of the shapes that its class has, open anywhere."""
    content = read_json(config)
    del content["quantization_config"]
    write_json(config, content)


@contextmanager
def _written_as(model: PreTrainedModel, packing: Packing, max_shard_size: int | str) -> Iterator[None]:
    """Let `save_pretrained` of the model write the compact form, while the block runs."""
    quantizer = written_by(model, packing)
    save = functools.partial(model.save_pretrained, max_shard_size=max_shard_size)
    attributes: list[tuple[Any, str, Any]] = [
        (model, "save_pretrained", save),
        (model.config, "quantization_config", quantizer.quantization_config),
        (model, "hf_quantizer", quantizer),
    ]
    before = [owner.__dict__.get(name) for owner, name, _ in attributes]
    for owner, name, value in attributes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(attributes, before, strict=True):
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _reopened(whole: nn.Module, model: PreTrainedModel, folder: Path) -> tuple[Any, Any]:
    """Return the model that a folder opens as, and the transformer in it."""
    if whole is not model:
        opened = reopen(whole, folder)
        return opened, transformer_of(opened)
    kind: Any = type(model)
    opened = kind.from_pretrained(folder, dtype=model.dtype, local_files_only=True, trust_remote_code=False)
    return opened, opened


@torch.no_grad()
def compare_weights(model: nn.Module, reloaded: nn.Module, packing: Packing) -> None:
    """Raise where a reloaded weight differs by more than rounding to its type explains."""
    tables = {id(entry.weight) for entry in model.modules() if isinstance(entry, nn.Embedding)}
    after = dict(reloaded.named_parameters())
    for name, weight in model.named_parameters():
        stored_as = packing.of_tables if id(weight) in tables else packing.values
        other = after[name].to(weight.device)
        loaded_as = other.dtype
        if loaded_as != weight.dtype:  # to compare like with like, outputs too
            other = after[name].data = other.to(weight.dtype)
        moved = float(torch.linalg.vector_norm((other - weight).double()))
        size = float(torch.linalg.vector_norm(weight.double()))
        allowed = _ROUNDING[stored_as] * size
        if loaded_as != weight.dtype and moved > allowed:
            raise FinepruneError(
                f"{name}: is {weight.dtype}, and transformers loads it as {loaded_as}: cast the whole model "
                "to one type, with its .to(dtype)"
            )
        if stored_as in _FINER and allowed < moved < size:
            option = "embeddings" if id(weight) in tables else "values"
            raise FinepruneError(
                f"{name}: {stored_as} is too coarse for it, as a few of its values are far larger than the "
                f"rest; give {option}={_FINER[stored_as]!r}; nothing was saved"
            )
        if other.shape != weight.shape or not moved <= allowed:
            raise FinepruneError(
                f"{name}: the written file differs from the model by {moved:g} in the 2-norm, "
                f"allowed is {allowed:g}; nothing was saved"
            )


def compare_outputs(
    model: PreTrainedModel, reloaded: PreTrainedModel, probe: Mapping[str, Tensor] | None, exact: bool
) -> float:
    """Return the relative difference of the two models' outputs on the probe; raise where it is too large."""
    inputs = probe_inputs(model) if probe is None else probe
    ours = checked_outputs(model, inputs)
    if not all(bool(tensor.isfinite().all()) for tensor in ours):
        raise FinepruneError(
            f"{type(model).__name__} answers the inputs to compare outputs on with nan or inf; "
            "nothing was saved"
        )
    _cast_buffers(model, reloaded)
    return _checked_difference(ours, outputs(reloaded.to(model.device), inputs), exact)


def _cast_buffers(model: nn.Module, reloaded: nn.Module) -> None:
    """Give buffers that no file holds the model's type, such as rotary frequencies, which it makes anew."""
    stored, ours = reloaded.state_dict(), dict(model.named_buffers())
    for name, buffer in reloaded.named_buffers():
        if name not in stored and name in ours and ours[name].dtype != buffer.dtype:
            buffer.data = buffer.to(ours[name].dtype)


def compare_answers(whole: nn.Module, opened: nn.Module, exact: bool) -> float:
    """Return the relative difference of two sentence models' answers; raise where it is too large."""
    # The transformers were compared before, on the same tokens.
    hint = (
        "; a likely cause is the tokenizer, if it was changed in memory in a way that its files do not keep, "
        "such as another normalizer: save it alone, open it again, and compare the tokens"
    )
    return _checked_difference(answers(whole), answers(opened), exact, hint)


def _checked_difference(ours: list[Tensor], theirs: list[Tensor], exact: bool, hint: str = "") -> float:
    changed = difference(ours, theirs)
    if not changed <= (1e-6 if exact else float("inf")):  # a NaN is a mismatch too
        raise FinepruneError(
            f"the written model answers differently, by {changed:g} of the largest output; nothing was saved"
            + hint
        )
    return changed
