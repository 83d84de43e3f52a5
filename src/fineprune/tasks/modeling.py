"""Build a pre-trained transformer with the head of a task."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune._messages import one_line
from fineprune._padding import ensure_padding
from fineprune._transformers_output import without_load_report
from fineprune.checkpoint.model_folder import find_model
from fineprune.errors import FinepruneError
from fineprune.tasks.data import TaskData
from fineprune.tasks.kinds import kind_named

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger("fineprune")
_HEADS = {"classifier", "pre_classifier", "classification_head", "score", "pooler", "sequence_summary"}


def build_model(
    name: str, data: TaskData, layers: int | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a pre-trained model and its tokenizer, and give the model a head for the task.

    The weights are float32; a head that is new, or was made for other labels, is random.

    Args:
        name: a local folder (of a model, a compact model or a run), a model on the Hugging Face hub, or
            `minilm`, the model in the package of `fineprune[demo]`.
        data: determines the head.
        layers: keep only this number of transformer layers, the first ones.

    Raises:
        FinepruneError: the model cannot be found or loaded, weights of its body are missing from its files,
            or it has fewer than `layers` layers.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    from fineprune.checkpoint.loading import to_dense

    source, head = find_model(name), data.head()
    with _explained(name, source, "config"):
        labels = AutoConfig.from_pretrained(source, trust_remote_code=False).id2label
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **head)
    for key, value in head.items():
        if not hasattr(config, key):  # from_pretrained drops settings that the config does not know
            setattr(config, key, value)
    if layers is not None:
        _keep_layers(config, layers, name)
    with _explained(name, source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    with _explained(name, source, "weights"), without_load_report():
        model, info = getattr(transformers, kind_named(data.kind).auto_class).from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a head for other labels; other mismatches are refused below
            output_loading_info=True,
        )
    _check_body(model, info, name)
    trained, wanted = ([str(label).casefold() for label in ids.values()] for ids in (labels, config.id2label))
    if trained != wanted and trained != [f"label_{index}" for index in labels]:
        _log.warning(
            "%s: its labels %s are not those of the data, %s: the head is new", name, trained, wanted
        )
        _renew_head(model)
    ensure_padding(model, tokenizer)
    return to_dense(model), tokenizer


def _keep_layers(config: Any, layers: int, name: str) -> None:
    total = getattr(config, "num_hidden_layers", None)  # through config.attribute_map: n_layers, n_layer
    if not isinstance(total, int):
        raise FinepruneError(
            f"{name}: cannot keep {layers} layers of a {config.model_type} model; leave `layers` out"
        )
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= total:
        raise FinepruneError(f"{name}: layers is {layers!r}; the model has {total}, allowed: 1 to {total}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:  # ModernBERT and others describe each layer
        config.layer_types = config.layer_types[:layers]


def _renew_head(model: Any) -> None:
    """Make all modules outside the body random again: they were trained on the labels of another task."""
    for name, module in model.named_modules():
        if name and not f"{name}.".startswith(f"{model.base_model_prefix}."):
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # else transformers does not initialize it again
            model._init_weights(module)


def _check_body(model: Any, info: dict[str, Any], name: str) -> None:
    """Raise when a weight of the body, other than of its pooler, was not in the model's files."""
    shapes = {key: parameter.shape for key, parameter in model.named_parameters()}
    prefix = f"{model.base_model_prefix}."
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    missing = set(info["missing_keys"])
    body = {key for key in shapes if key.startswith(prefix) and not _HEADS & set(key.split("."))}
    if wrong := sorted(mismatched & body):
        raise FinepruneError(f"{name}: the shape of {wrong[0]} in the files does not fit config.json")
    if wrong := sorted(key for key in missing & body if len(shapes[key]) > 1):
        raise FinepruneError(
            f"{name}: {len(wrong)} of the {len(body)} weights of the {model.config.model_type} model "
            f"are not in its files and would be random, such as {wrong[0]}; use a pre-trained model"
        )


@contextmanager
def _explained(name: str, source: Path | str, part: str) -> Iterator[None]:
    """Turn any error that transformers raises while it loads into one line."""
    try:
        yield
    except Exception as error:  # OSError, ValueError, SafetensorError, … by file and by version
        hub = "" if isinstance(source, Path) else " (no such folder, so from the hub)"
        raise FinepruneError(
            f"{name}: cannot load the {part} of the model{hub}: {one_line(error)}"
        ) from error
