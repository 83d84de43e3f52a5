"""From a sentence encoder to the embeddings of texts, or the similarity of pairs."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune._padding import ensure_padding
from fineprune.tasks.batches import (
    Asked,
    as_rows,
    check_finite,
    fitting,
    longest_first,
    private_copy,
    read_texts,
    tokenizing,
)
from fineprune.tasks.model_config import longest_input
from fineprune.tasks.text.data import tokenize

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_SHOWN = 4  # numbers of an embedding in a line


def answer_in_place(model: Any, place: Path | str) -> None:
    """Make a transformer without a head answer with embeddings (`encoder.as_sentence_encoder`)."""
    from fineprune.tasks.embeddings.encoder import as_sentence_encoder  # imports torch

    as_sentence_encoder(model, place)


def embed(
    model: Any, tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], batch_size: int = 32
) -> "Tensor":
    """Return the embeddings of texts, (rows, features) float32, in the order given.

    Texts are cut to the tokens that the model's Sentence Transformers settings say.

    Raises:
        FinepruneError: a text that is not a string, or an output that is not finite.
    """
    import torch
    from transformers import DataCollatorWithPadding

    from fineprune.pruning.probe import evaluating

    texts, _ = read_texts(texts, None, batch_size)
    ensure_padding(model, tokenizer)
    tokenizer = private_copy(tokenizer)
    longest = _most_tokens(model, tokenizer)
    with tokenizing():
        rows = as_rows(tokenize(texts, None, tokenizer, longest))
    collate = DataCollatorWithPadding(tokenizer)
    found = torch.zeros(len(rows), model.sentence.width(model))
    with evaluating(model), torch.inference_mode():
        for batch in longest_first([len(row["input_ids"]) for row in rows], batch_size):
            values = model(**collate([rows[index] for index in batch]).to(model.device))["logits"].cpu()
            check_finite(values, batch)
            found[batch] = values
    return found


def _most_tokens(model: Any, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the tokens to which a text is cut: those of the settings go before the tokenizer's own."""
    said: int | None = model.sentence.longest
    positions = longest_input(model)
    if said is None:
        return fitting(2**30, model, tokenizer)
    return said if positions is None else min(said, positions)


def predict_rows(model: Any, tokenizer: Any, asked: Asked) -> list[dict[str, Any]]:
    """Return the embedding of each text, or the cosine of each pair, as objects for JSON."""
    from fineprune.tasks.embeddings.metrics import unit  # imports numpy

    vectors = embed(model, tokenizer, [*asked.texts, *asked.pairs]).numpy()
    if not asked.pairs:
        return [
            {"text": text, "embedding": vector.tolist()}
            for text, vector in zip(asked.texts, vectors, strict=True)
        ]
    first, second = (unit(half) for half in (vectors[: len(asked.texts)], vectors[len(asked.texts) :]))
    cosines = (first * second).sum(1)
    return [
        {"text": text, "pair": pair, "similarity": float(cosine)}
        for text, pair, cosine in zip(asked.texts, asked.pairs, cosines, strict=True)
    ]


def text_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each row: the similarity of a pair, or the first numbers of an embedding."""
    for row in rows:
        if "pair" in row:
            yield f"{row['similarity']:.4f}\t{row['text']}\t{row['pair']}"
        else:
            values = row["embedding"]
            shown = " ".join(f"{value:.4f}" for value in values[:_SHOWN])
            yield f"{shown} … ({len(values)} numbers; --json has all)\t{row['text']}"
