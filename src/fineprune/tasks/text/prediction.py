"""From a trained classifier to predictions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fineprune._engine_errors import engine_errors
from fineprune._padding import ensure_padding
from fineprune.tasks.batches import (
    Asked,
    as_rows,
    check_finite,
    check_pairs,
    fitting,
    longest_first,
    private_copy,
    read_texts,
    tokenizing,
    usual_length,
)
from fineprune.tasks.model_config import labels_of, problem_of
from fineprune.tasks.text.data import tokenize
from fineprune_runtime.cross_encoders import is_cross_encoder
from fineprune_runtime.results import USUAL_LENGTH, Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def predict(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    pairs: Iterable[str] | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
) -> list[Prediction] | list[list[Prediction]]:
    """Predict for each text, or each pair of a text and its `pairs` text, in the order given.

    A model that gives several labels to a text (problem_type multi_label_classification) answers with a list
    of those whose probability is 0.5 or more, the best first.

    Texts are cut to `max_length` tokens, or to what the model takes if that is less; None: to those of the
    model's run (`fineprune_max_length` in its config), else to 128, those of a cross-encoder to what it
    takes, as sentence-transformers does. The model runs on its device, in evaluation mode; each module's
    training mode is as before afterwards.

    Raises:
        FinepruneError: a single string, a text that is not a string, `pairs` of another length, or a
            `batch_size` below 1, pairs on a model of single texts, an output that is not finite.
    """
    import torch
    from transformers import DataCollatorWithPadding

    from fineprune.pruning.probe import evaluating

    texts, pairs = read_texts(texts, pairs, batch_size)
    if not texts:
        return []
    check_pairs(model, pairs is not None)
    ensure_padding(model, tokenizer)
    tokenizer = private_copy(tokenizer)
    if max_length is None:
        uncut = is_cross_encoder(vars(model.config), {})
        max_length = usual_length(model, tokenizer.model_max_length if uncut else USUAL_LENGTH)
    longest = fitting(max_length, model, tokenizer)
    with tokenizing():
        rows = as_rows(tokenize(texts, pairs, tokenizer, longest))
    collate = DataCollatorWithPadding(tokenizer)
    logits: dict[int, Any] = {}
    with evaluating(model), torch.inference_mode():
        for batch in longest_first([len(row["input_ids"]) for row in rows], batch_size):
            inputs = collate([rows[index] for index in batch]).to(model.device)
            values = model(**inputs).logits.float().cpu()
            check_finite(values, batch)
            logits.update(zip(batch, values.numpy(), strict=True))
    return _predictions(model, [logits[index] for index in range(len(rows))])


def predict_rows(model: Any, tokenizer: Any, asked: Asked) -> list[dict[str, Any]]:
    """Return the predictions as objects for JSON."""
    predictions: Sequence[Prediction | list[Prediction]] = predict(
        model, tokenizer, asked.texts, asked.pairs or None, **asked.reading()
    )
    rows: list[dict[str, Any]] = [
        {"text": text} | _as_json(found) for text, found in zip(asked.texts, predictions, strict=True)
    ]
    for row, pair in zip(rows, asked.pairs, strict=False):
        row["pair"] = pair
    return rows


def text_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each row: the label if it has one, the score, and the texts."""
    for row in rows:
        if "labels" in row:
            found = ", ".join(f"{each['label']} {each['score']:.4f}" for each in row["labels"])
            answer = [found or "(no label)"]
        else:
            answer = [] if row["label"] is None else [row["label"]]
            answer.append(f"{row['score']:.4f}")
        texts = [row["text"], row["pair"]] if "pair" in row else [row["text"]]
        yield "\t".join([*answer, *texts])


def _as_json(found: Prediction | list[Prediction]) -> dict[str, Any]:
    """Return what a model says of a text as an object for JSON."""
    if isinstance(found, list):
        return {"labels": [asdict(prediction) for prediction in found]}
    return asdict(found)


def _predictions(model: Any, logits: list[Any]) -> list[Prediction] | list[list[Prediction]]:
    """Return the predictions of each row of logits, (classes,) each, by the problem that the model solves."""
    from fineprune_runtime.classes import all_labels, best_class, one_value
    from fineprune_runtime.cross_encoders import has_sigmoid

    solves = problem_of(model)
    with engine_errors():
        sigmoid = has_sigmoid(vars(model.config), {}, model.config.num_labels)
        if solves == "value":
            return one_value(logits, sigmoid)
        names = labels_of(model)
        return all_labels(logits, names) if solves == "labels" else best_class(logits, names, sigmoid)
