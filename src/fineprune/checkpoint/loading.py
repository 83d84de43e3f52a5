"""Open a model of any form: the one seam to transformers' loading."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from fineprune._messages import one_line
from fineprune._transformers_output import quiet
from fineprune.checkpoint import delta, legacy_import, packing, transformers_hook
from fineprune.checkpoint.compact import ABOUT
from fineprune.checkpoint.model_folder import find_model, model_place
from fineprune.errors import FinepruneError
from fineprune.pruning.targets import refuse_accelerated

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

    Raises:
        FinepruneError: no such model, or its files are damaged.
    """
    place = find_model(source) if hub else model_place(Path(source))
    with quiet(), torch.random.fork_rng(devices=[]):
        if isinstance(place, str):
            model, tokenizer = _from_hub(place, hub_class)
        else:
            if method is not None or threshold is not None or legacy_import.is_foreign(place):
                model = legacy_import.import_checkpoint(place, method, threshold)
            else:
                model = load(place)
            tokenizer = _tokenizer_of(place, model)
    if need_tokenizer and tokenizer is None:
        raise FinepruneError(f"{place}: no tokenizer in it; save the model's tokenizer there, too")
    return OpenedModel(model, tokenizer, place)


def load(
    folder: str | Path, packed: bool = False, base: str | Path | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Return the model of a folder, of the class that config.json names, in evaluation mode.

    Args:
        folder: the folder of a dense or compact model, or of a delta (`save_delta`).
        packed: keep the pruned matrices packed in memory: small, and slow until `accelerate` hands them to
            the sparse engine. In models that the engine runs whole, the table of words stays packed too,
            unless a decoder is tied to it.
        base: the model that a delta is added to; None: the one that the delta names.
        **kwargs: go to `from_pretrained` (dtype, device_map, ...).

    Raises:
        FinepruneError: no model in the folder, a damaged one, or another base than the delta's.
    """
    folder = Path(folder)
    kind = _class_of(folder)
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
    with context:
        try:
            return kind.from_pretrained(folder, local_files_only=True, **kwargs)
        except FinepruneError:
            raise
        except Exception as error:  # an odd config.json makes a model's code raise anything
            raise FinepruneError(f"{folder}: cannot load the model ({one_line(error)})") from error


def to_dense(model: PreTrainedModel) -> PreTrainedModel:
    """Make a loaded compact model an ordinary one, in place: `save_pretrained` then writes zeros."""
    refuse_accelerated(model, "load it again, without accelerate")
    if any(map(packing.is_packed, model.modules())):
        raise FinepruneError("this model's matrices are packed: load it without packed=True")
    quantizer = getattr(model, "hf_quantizer", None)
    if isinstance(quantizer, transformers_hook.CompactQuantizer):
        quantizer.remove_quantization_config(model)
        model._weight_conversions = [
            entry for entry in model._weight_conversions or [] if not transformers_hook.is_ours(entry)
        ]
    return model


def _class_of(folder: Path) -> Any:
    """Return the class of transformers that a folder's config.json names."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        (name,) = config["architectures"]
        kind = getattr(transformers, name)
    except OSError as error:
        raise FinepruneError(
            f"{folder}: no model in it, config.json is missing ({error.strerror})"
        ) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FinepruneError(f"{path}: names no architecture ({error})") from error
    except AttributeError as error:
        raise FinepruneError(f"{path}: transformers has no {name!r}") from error
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise FinepruneError(f"{path}: {name!r} is no model")
    return kind


def _about(folder: Path) -> Any:
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FinepruneError(f"{folder / ABOUT}: cannot be read ({error})") from error


def _tokenizer_of(place: Path, model: Any) -> Any:
    """Return the tokenizer in a model folder; None where none of its files is there."""
    if not any(any(place.glob(name)) for name in _TOKENIZERS):
        return None
    try:  # by the model's config: the folder's may name a model type of another program
        return transformers.AutoTokenizer.from_pretrained(
            place, config=model.config, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # by file and by version
        raise FinepruneError(f"{place}: cannot load the tokenizer ({one_line(error)})") from error


def _from_hub(name: str, kind: Any) -> tuple[Any, Any]:
    """Return a model of the hub, and its tokenizer where that can be loaded."""
    try:
        if kind is None:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            (named,) = config.architectures or ["AutoModel"]
            kind = getattr(transformers, named)
        model = kind.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, SafetensorError, … by file and by version
        raise FinepruneError(
            f"{name}: cannot load the model (no such folder, so from the hub): {one_line(error)}"
        ) from error
    try:
        return model, transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception:  # whatever transformers raises where a repository has no tokenizer
        return model, None
