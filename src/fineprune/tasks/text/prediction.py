"""From a trained classifier to predictions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fineprune._padding import ensure_padding
from fineprune.tasks.batches import Asked, as_rows, check_texts, fitting, longest_first
from fineprune.tasks.model_config import is_regression, labels_of
from fineprune.tasks.text.data import tokenize
from fineprune_runtime.results import Prediction

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def predict(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    batch_size: int = 32,
    max_length: int = 128,
) -> list[Prediction]:
    """Predict for each text, or each pair of a text and its `pairs` text, in the order given.

    Texts are cut to `max_length` tokens, or to what the model takes if that is less. The model runs on its
    device, in evaluation mode; each module's training mode is as before afterwards.

    Raises:
        FinepruneError: a single string, a text that is not a string, `pairs` of another length, or a
            `batch_size` below 1.
    """
    import torch
    from transformers import DataCollatorWithPadding

    from fineprune.pruning.probe import evaluating

    check_texts(texts, pairs, batch_size)
    if not texts:
        return []
    ensure_padding(model, tokenizer)
    longest = fitting(max_length, model, tokenizer)
    rows = as_rows(tokenize(list(texts), None if pairs is None else list(pairs), tokenizer, longest))
    collate = DataCollatorWithPadding(tokenizer)
    names = None if is_regression(model) else labels_of(model)
    predictions: dict[int, Prediction] = {}
    with evaluating(model), torch.inference_mode():
        for batch in longest_first([len(row["input_ids"]) for row in rows], batch_size):
            inputs = collate([rows[index] for index in batch]).to(model.device)
            logits = model(**inputs).logits.float().cpu()
            predictions.update(zip(batch, _predictions(logits, names), strict=True))
    return [predictions[index] for index in range(len(rows))]


def predict_rows(model: Any, tokenizer: Any, asked: Asked) -> list[dict[str, Any]]:
    """Return the predictions as objects for JSON."""
    predictions = predict(model, tokenizer, asked.texts, asked.pairs or None, **asked.reading())
    rows = [
        {"text": text, "label": prediction.label, "score": prediction.score}
        for text, prediction in zip(asked.texts, predictions, strict=True)
    ]
    for row, pair in zip(rows, asked.pairs, strict=False):
        row["pair"] = pair
    return rows


def text_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each row: the label if it has one, the score, and the texts."""
    for row in rows:
        label = [] if row["label"] is None else [row["label"]]
        texts = [row["text"], row["pair"]] if "pair" in row else [row["text"]]
        yield "\t".join([*label, f"{row['score']:.4f}", *texts])


def _predictions(logits: Any, names: tuple[str, ...] | None) -> list[Prediction]:
    """Return the prediction of each row of `logits`, of shape (rows, classes)."""
    if names is None:
        return [Prediction(None, value) for value in logits[:, 0].tolist()]
    scores, ids = logits.softmax(dim=-1).max(dim=-1)
    return [
        Prediction(names[index], score) for index, score in zip(ids.tolist(), scores.tolist(), strict=True)
    ]
