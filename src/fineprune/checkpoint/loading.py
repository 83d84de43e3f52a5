"""Open a model of any form: the one seam to transformers' loading."""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import cached_file

from fineprune._transformers_output import quiet, without_load_report
from fineprune.checkpoint import completeness, delta, legacy_import, packing, shapes, transformers_hook
from fineprune.checkpoint.compact import ABOUT
from fineprune.checkpoint.model_files import check_files, explained, read_json
from fineprune.checkpoint.model_folder import find_model, model_place
from fineprune.checkpoint.remote_code import class_named, config_of, refuse_code
from fineprune.checkpoint.sentence_files import CROSS, read_sentence_files, sentence_files_of
from fineprune.checkpoint.tokenizer_fit import check_tokenizer
from fineprune.errors import FinepruneError
from fineprune.pruning.targets import refuse_accelerated
from fineprune_runtime.cross_encoders import KEY
from fineprune_runtime.modules import MODULES

# A class with a head. config.json of many a sentence encoder names that of its pre-training, which was not
# saved: MPNetForMaskedLM. sentence-transformers opens what is below the head.
_HEAD = "For"
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "*.model")


class OpenedModel(NamedTuple):
    """A model in evaluation mode, with its tokenizer and the place where both were found."""

    model: Any
    tokenizer: Any
    """None where the place has none."""

    place: Path | str
    """The model folder, or the name on the hub."""


def open_model(
    source: str | Path,
    *,
    hub: bool = False,
    need_tokenizer: bool = False,
    hub_class: type[PreTrainedModel] | None = None,
    method: str | None = None,
    threshold: float | None = None,
    trust_remote_code: bool = False,
) -> OpenedModel:
    """Open the model that a user named, without any output of transformers.

    The state of torch's random generator is the same afterwards.

    Args:
        source: a run folder, or a model folder: dense, compact, a delta, or a checkpoint of the original
            scripts or of nn_pruning, which is recognized by its keys.
        hub: `source` may also be a name on the hub, or minilm.
        need_tokenizer: raise where there is no tokenizer.
        hub_class: class of a model from the hub; None: the class that its config.json names.
        method: how an older program pruned the checkpoint, where its files do not say (`import_checkpoint`).
        threshold: the final threshold of such a checkpoint.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        FinepruneError: no such model, its files are damaged, lack weights or have too many, or its tokenizer
            does not fit it.
    """
    place = find_model(source) if hub else model_place(Path(source))
    with quiet(), torch.random.fork_rng(devices=[]):
        if isinstance(place, str):
            model, tokenizer = _from_hub(place, hub_class, trust_remote_code)
        else:
            check_files(place, tokenizer=True)
            if method is not None or threshold is not None or legacy_import.is_foreign(place):
                model = legacy_import.import_checkpoint(place, method, threshold)
            else:
                model = load(place, trust_remote_code=trust_remote_code)
            tokenizer = _tokenizer_of(place, model, trust_remote_code)
            _note_cross_encoder(model, place)
    if need_tokenizer and tokenizer is None:
        raise FinepruneError(f"{place}: no tokenizer in it; save the model's tokenizer there, too")
    if tokenizer is not None:
        check_tokenizer(model, tokenizer, place)
    return OpenedModel(model, tokenizer, place)


def load(
    folder: str | Path,
    packed: bool = False,
    base: str | Path | None = None,
    *,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """Return the model of a folder, of the class that config.json names, in evaluation mode.

    Args:
        folder: the folder of a dense or compact model, or of a delta (`save_delta`). Of a Sentence
            Transformers folder it is the transformer that is returned.
        packed: keep the pruned matrices packed in memory: small, and slow until `accelerate` hands them to
            the sparse engine. In models that the engine runs whole, the table of words stays packed too,
            unless a decoder is tied to it.
        base: the model that a delta is added to; None: the one that the delta names.
        trust_remote_code: run Python code that comes with the model.
        **kwargs: go to `from_pretrained` (dtype, device_map, ...).

    Raises:
        FinepruneError: no model in the folder, a damaged one, one whose files lack weights, or another base
            than the delta's.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / "config.json") and (files := read_sentence_files(folder)):
        folder = files.transformer
    check_files(folder)
    kind = _class_of(folder, trust_remote_code)
    if (folder / delta.WEIGHTS).is_file():
        if packed or kwargs:
            raise FinepruneError(
                f"{folder}: is a delta, which takes no {', '.join(kwargs) or 'packed=True'}; "
                "load it as it is and convert the model"
            )
        return delta.load_delta(folder, kind, _about(folder), base).eval()
    if base is not None:
        raise FinepruneError(f"base={str(base)!r}: {folder} is a whole model and needs no base")
    context = transformers_hook.staying_packed() if packed else contextlib.nullcontext()
    # Other shapes are refused below, in one line.
    options = kwargs | {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with context, explained(f"{folder}: cannot load the model"), without_load_report():
        model, info = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code, **options
        )
    compact = isinstance(getattr(model, "hf_quantizer", None), transformers_hook.CompactQuantizer)
    layers = {"config", "num_hidden_layers", model.config.attribute_map.get("num_hidden_layers")}
    completeness.check_all(model, info, folder, exact=compact, cut=bool(layers & set(kwargs)))
    loaded: PreTrainedModel = model
    return loaded


def to_dense(model: PreTrainedModel) -> PreTrainedModel:
    """Make a loaded compact model an ordinary one, in place: `save_pretrained` then writes zeros.

    A shrunk one has to write its own shapes still, now with exact values; `shapes.full_size` pads it before.
    """
    refuse_accelerated(model, "load it again, without accelerate")
    if any(map(packing.is_packed, model.modules())):
        raise FinepruneError("this model's matrices are packed: load it without packed=True")
    quantizer = getattr(model, "hf_quantizer", None)
    if isinstance(quantizer, transformers_hook.CompactQuantizer):
        if shapes.has_own(model):
            transformers_hook.write_as(model, packing.Packing())
            return model
        quantizer.remove_quantization_config(model)
        model._weight_conversions = [
            entry for entry in model._weight_conversions or [] if not transformers_hook.is_ours(entry)
        ]
    return model


def _class_of(folder: Path, trust_remote_code: bool) -> Any:
    """Return what opens the model of a folder, by its config.json."""
    path = folder / "config.json"
    try:
        config = config_of(folder)
        (name,) = config["architectures"]
        if not isinstance(name, str):
            raise TypeError(f"architectures holds {name!r}")
    except OSError as error:
        inner = folder / "model"  # where a run keeps its model
        there = f"; name {inner}, which is one" if os.path.isfile(inner / "config.json") else ""
        raise FinepruneError(
            f"{folder}: no model in it, config.json is missing ({error.strerror}){there}"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise FinepruneError(f"{path}: names no architecture ({error})") from error
    files = sentence_files_of(folder) if _HEAD in name else None
    body = files is not None and files.pools
    return class_named(config, None if body else name, folder, trust_remote_code)


def _note_cross_encoder(model: PreTrainedModel, place: Path) -> None:
    """Keep the function of a cross-encoder's score in the model's config, where older versions had it."""
    files = sentence_files_of(place)
    if files is not None and files.kind == CROSS:
        settings = {"activation_fn": files.about.get("activation_fn")}
        setattr(model.config, KEY, getattr(model.config, KEY, None) or settings)


def _about(folder: Path) -> Any:
    try:
        return read_json(folder / ABOUT)
    except (OSError, FinepruneError) as error:
        raise FinepruneError(f"{folder / ABOUT}: cannot be read ({error})") from error


def _is_sentence_encoder(name: str) -> bool:
    """Return whether a model of the hub is one of sentence-transformers that pools what the body gives."""
    missing = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    modules = cached_file(name, MODULES, **missing)
    files = None if modules is None else read_sentence_files(Path(modules).parent)
    return files is not None and files.pools


def _tokenizer_of(place: Path, model: Any, trust_remote_code: bool) -> Any:
    """Return the tokenizer in a model folder; None where none of its files is there."""
    if not any(any(place.glob(name)) for name in _TOKENIZERS):
        return None
    with explained(f"{place}: cannot load the tokenizer"):
        # By the model's config: the folder's may name a model type of another program.
        return transformers.AutoTokenizer.from_pretrained(
            place, config=model.config, local_files_only=True, trust_remote_code=trust_remote_code
        )


def _from_hub(name: str, kind: Any, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return a model of the hub, and its tokenizer where that can be loaded."""
    given = kind is not None
    with explained(f"{name}: cannot load the model (no such folder, so from the hub)"):
        config = config_of(name)
        if given:
            refuse_code(config, name)
        else:
            (named,) = config.get("architectures") or [None]
            if named and _HEAD in named and _is_sentence_encoder(name):
                named = None
            kind = class_named(config, named, name, trust_remote_code)
        model, info = kind.from_pretrained(
            name,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below
        )
    check = completeness.check_body if given else completeness.check_all
    check(model, info, name)
    try:
        return model, transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception:  # whatever transformers raises where a repository has no tokenizer
        return model, None
