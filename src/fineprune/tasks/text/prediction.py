"""From a trained classifier to answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fineprune._padding import ensure_padding
from fineprune.errors import FinepruneError
from fineprune.pruning.probe import evaluating
from fineprune.tasks.modeling import known_labels, longest_input
from fineprune.tasks.text.task import tokenize
from fineprune_runtime import results
from fineprune_runtime.errors import EngineError
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
    """Answer each text, or each pair of a text and its `pairs` text, in the order given.

    What is longer than `max_length` tokens, or than the model takes, is cut.

    Runs on the model's device, in evaluation mode, batches of similar length together; each
    module's training mode is as before afterwards. Raises `FinepruneError` for a single string, a
    text that is not a string, `pairs` of another length, and a `batch_size` below 1.
    """
    import torch
    from transformers import DataCollatorWithPadding

    check_texts(texts, pairs, batch_size)
    if not texts:
        return []
    ensure_padding(model, tokenizer)
    longest = fitting(max_length, model, tokenizer)
    columns = tokenize(list(texts), None if pairs is None else list(pairs), tokenizer, longest)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]), reverse=True)
    collate = DataCollatorWithPadding(tokenizer)
    names = known_labels(model)
    answers: dict[int, Prediction] = {}
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = collate([rows[index] for index in batch]).to(model.device)
            logits = model(**inputs).logits.float().cpu()
            answers.update(zip(batch, _answers(logits, names), strict=True))
    return [answers[index] for index in range(len(rows))]


def _answers(logits: Any, names: tuple[str, ...] | None) -> list[Prediction]:
    """The answer of each row of `logits`, of shape (rows, classes)."""
    if names is None:
        return [Prediction(None, value) for value in logits[:, 0].tolist()]
    scores, ids = logits.softmax(dim=-1).max(dim=-1)
    return [
        Prediction(names[index], score) for index, score in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int) -> None:
    """Raise `FinepruneError` for what `predict` cannot answer."""
    try:
        results.check_texts(texts, pairs, batch_size)
    except EngineError as error:
        raise FinepruneError(str(error)) from None


def fitting(max_length: int, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """`max_length`, or what model and tokenizer take if that is less."""
    limits = (max_length, longest_input(model), tokenizer.model_max_length)
    return min(limit for limit in limits if limit is not None and limit > 0)
