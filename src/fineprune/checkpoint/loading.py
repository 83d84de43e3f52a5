"""Open a model folder of any form, as an ordinary model or with its matrices packed."""

import contextlib
import json
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from fineprune._messages import one_line
from fineprune.checkpoint import delta, packing, transformers_hook
from fineprune.checkpoint.compact import ABOUT
from fineprune.errors import FinepruneError
from fineprune.pruning.targets import refuse_accelerated


def load(
    folder: str | Path, packed: bool = False, base: str | Path | None = None, **kwargs: Any
) -> PreTrainedModel:
    """The model of a folder, of the class that config.json names, in evaluation mode.

    `packed` keeps the pruned matrices packed in memory: small, and slow until `accelerate` hands them to
    the sparse engine. Of the models that it runs whole the table of words stays packed too, unless a decoder
    is tied to it. A folder of `save_delta` takes the rest from the base that it names, or from `base`.
    `kwargs` go to `from_pretrained` (dtype, device_map, ...). Raises `FinepruneError` for a folder without a
    model, for a damaged one, and for another base.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (name,) = config["architectures"]
        kind = getattr(transformers, name)
    except OSError as error:
        raise FinepruneError(
            f"{folder}: no model in it, config.json is missing ({error.strerror})"
        ) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FinepruneError(f"{folder / 'config.json'}: names no architecture ({error})") from error
    except AttributeError as error:
        raise FinepruneError(f"{folder / 'config.json'}: transformers has no {name!r}") from error
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    if not is_model:
        raise FinepruneError(f"{folder / 'config.json'}: {name!r} is no model")
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


def _about(folder: Path) -> Any:
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FinepruneError(f"{folder / ABOUT}: cannot be read ({error})") from error


def to_dense(model: PreTrainedModel) -> PreTrainedModel:
    """Make a loaded compact model forget that it was one, in place: `save_pretrained` then writes zeros."""
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
