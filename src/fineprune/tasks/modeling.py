"""Build a pre-trained transformer with the head of a task."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from fineprune._padding import ensure_padding
from fineprune._transformers_output import without_load_report
from fineprune.checkpoint.model_files import check_files, explained
from fineprune.checkpoint.model_folder import find_model
from fineprune.errors import FinepruneWarning
from fineprune.tasks.data import TaskData
from fineprune.tasks.embeddings.data import EmbeddingData
from fineprune.tasks.kinds import kind_named
from fineprune.tasks.layer_choice import check_choice, keep_chosen, keep_first
from fineprune.tasks.model_config import override_dropouts
from fineprune.tasks.text.data import ClassificationData
from fineprune_runtime.results import TEXT_PAIRS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger("fineprune")

_HEAD_IS_NEW = "_fineprune_head_is_new"  # marks a model whose head is random


def build_model(
    name: str,
    data: TaskData,
    layers: int | Sequence[int] | None = None,
    dropout: float | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a pre-trained model and its tokenizer, and give the model a head for the task.

    The weights are float32; a head that is new, or was made for other labels, is random. Its bias is the mean
    of the training labels in a regression.

    Args:
        name: a local folder (of a model, a compact model or a run), a model on the Hugging Face hub, or
            `minilm`, the model in the package of `fineprune[demo]`.
        data: determines the head.
        layers: keep only this number of transformer layers, the first ones, or those of a list, from 0 on.
        dropout: the probability of every dropout in the model; its config, which later trainings read, keeps
            its own values. None: the model's own.
        attention: the implementation of attention, by its name in transformers; None: the one it chooses.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        FinepruneError: the model cannot be found or loaded, weights of its body are missing from its files,
            its tokenizer does not fit it, or it has fewer than `layers` layers.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    from fineprune.checkpoint.completeness import check_all, check_body
    from fineprune.checkpoint.loading import to_dense
    from fineprune.checkpoint.remote_code import config_of, refuse_code
    from fineprune.checkpoint.tokenizer_fit import check_tokenizer

    source, head = find_model(name), data.head()
    kind = kind_named(data.kind)
    answer_in_place = kind.answer_in_place
    if isinstance(source, Path):
        check_files(source, tokenizer=True)
    trust = {"trust_remote_code": trust_remote_code}
    with explained(_cannot(name, source, "config")):
        if not trust_remote_code:
            refuse_code(config_of(source), name)
        before = AutoConfig.from_pretrained(source, **trust)
        config = AutoConfig.from_pretrained(source, **trust, **head)
    for key, value in head.items():
        if not hasattr(config, key):  # from_pretrained drops settings that the config does not know
            setattr(config, key, value)
    if isinstance(data, ClassificationData):
        _describe(config, data, before, name)
    chosen = layers if isinstance(layers, (list, tuple)) else None
    if chosen is not None:
        check_choice(config, chosen, name)
    elif layers is not None:
        keep_first(config, cast(int, layers), name)
    with explained(_cannot(name, source, "tokenizer")):
        tokenizer = AutoTokenizer.from_pretrained(source, **trust)
    own_dropouts = {} if dropout is None else override_dropouts(config, dropout)
    with explained(_cannot(name, source, "weights")), without_load_report():
        model, info = getattr(transformers, kind.auto_class).from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            **trust,
            ignore_mismatched_sizes=True,  # a head for other labels; other mismatches are refused below
            output_loading_info=True,
            attn_implementation=attention,
        )
    for key, value in own_dropouts.items():  # models read their config when they are made
        setattr(model.config, key, value)
    cut = layers is not None and chosen is None
    (check_body if answer_in_place is None else check_all)(model, info, name, cut=cut)
    check_tokenizer(model, tokenizer, name)
    labels = before.id2label
    trained, wanted = ([str(label).casefold() for label in ids.values()] for ids in (labels, config.id2label))
    if trained != wanted and trained != [f"label_{index}" for index in labels]:
        _log.warning(
            "%s: its labels %s are not those of the data, %s: the head is new", name, trained, wanted
        )
        _renew_head(model)
        new = {name for name, _ in model.named_parameters()}
    else:
        new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    ensure_padding(model, tokenizer)
    model = to_dense(model)
    if chosen is not None:
        model = keep_chosen(model, chosen, name)
    if isinstance(data, ClassificationData) and data.labels is None and data.train is not None:
        _start_at_mean(model, new, data.train.labels or ())
    if answer_in_place is not None:
        answer_in_place(model, source)
    if isinstance(data, EmbeddingData):
        data.attach_loss(model)
    setattr(model, _HEAD_IS_NEW, answer_in_place is None and _lacks_head(model, new))
    return model, tokenizer


def head_is_new(model: Any) -> bool:
    """Return whether the head that `build_model` gave a model is random, in whole or in part."""
    return getattr(model, _HEAD_IS_NEW, False)


def _describe(config: Any, data: ClassificationData, before: Any, name: str) -> None:
    """Record whether the texts are pairs; warn if the model gave several labels, as `before` says."""
    if len(data.validation):
        setattr(config, TEXT_PAIRS, data.validation.pairs is not None)
    if before.problem_type == "multi_label_classification":
        warnings.warn(
            f"{name}: gave several labels to a text (problem_type multi_label_classification), and is "
            "trained to give one: fineprune trains no model of several labels",
            FinepruneWarning,
            stacklevel=3,
        )


def _lacks_head(model: Any, new: set[str]) -> bool:
    """Return whether a matrix outside the body is among the `new` parameters, which are random."""
    return any(
        name in new and parameter.ndim > 1 and not name.startswith(f"{model.base_model_prefix}.")
        for name, parameter in model.named_parameters()
    )


def _renew_head(model: Any) -> None:
    """Make all modules outside the body random again: they were trained on the labels of another task."""
    for _, module in _head_modules(model):
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False  # else transformers does not initialize it again
        model._init_weights(module)


def _start_at_mean(model: Any, new: set[str], values: Sequence[float]) -> None:
    """Set the bias of a new output to the mean of the labels, which takes it many steps to learn from 0.

    Args:
        model: a regression.
        new: the names of the parameters that its files do not have, those of its body included.
        values: the labels of the training data.
    """
    import torch

    outputs = [
        (f"{name}.bias", module.bias)
        for name, module in _head_modules(model)
        if isinstance(module, torch.nn.Linear) and module.out_features == 1 and module.bias is not None
    ]
    if values and outputs and outputs[-1][0] in new:
        torch.nn.init.constant_(outputs[-1][1], fmean(values))


def _head_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules outside the body, with their names."""
    for name, module in model.named_modules():
        if name and not f"{name}.".startswith(f"{model.base_model_prefix}."):
            yield name, module


def _cannot(name: str, source: Path | str, part: str) -> str:
    hub = "" if isinstance(source, Path) else " (no such folder, so from the hub)"
    return f"{name}: cannot load the {part} of the model{hub}"
