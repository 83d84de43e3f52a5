"""From a trained tagger to the entities of plain text."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fineprune._padding import ensure_padding
from fineprune.errors import FinepruneError
from fineprune.tasks.batches import (
    Asked,
    as_rows,
    check_finite,
    fitting,
    longest_first,
    private_copy,
    read_texts,
    tokenizing,
    usual_length,
)
from fineprune.tasks.model_config import labels_of
from fineprune.tasks.questions.context_windows import RightPadding
from fineprune.tasks.tokens.word_windows import tokenize_words
from fineprune_runtime.entities import are_entities, entities, word_spans
from fineprune_runtime.results import USUAL_LENGTH, Entity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def predict_entities(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    batch_size: int = 32,
    max_length: int | None = None,
) -> list[list[Entity]]:
    """Return the entities of each text, in the order given; words are separated by white space.

    A word's tag is that of its first token. Tags become entities as seqeval reads them; where the
    tags are not of entities (parts of speech), each word is one. Long texts are read in pieces of
    `max_length` tokens (None: those of the model's run, else 128), or of those that the model takes if
    that is less.

    Raises:
        FinepruneError: as `text.prediction.predict`.
    """
    texts, _ = read_texts(texts, None, batch_size)
    ensure_padding(model, tokenizer)
    tokenizer = private_copy(tokenizer)
    words = [word_spans(text) for text in texts]
    tags: list[dict[int, tuple[str, float]]] = [{} for _ in texts]
    if texts:
        starts = [[start for start, _ in spans] for spans in words]
        with tokenizing():
            longest = fitting(max_length or usual_length(model, USUAL_LENGTH), model, tokenizer)
            columns, places = tokenize_words(texts, starts, tokenizer, longest)
        sources = [source for source, _ in places]
        for index, row_tags in _tags_of_tokens(model, tokenizer, as_rows(columns), sources, batch_size):
            source, begun = places[index]
            for word, tag in zip(begun, row_tags, strict=False):  # behind the row's end is padding
                if word is not None:
                    tags[source][word] = tag
    plain = not are_entities(labels_of(model))
    return [
        list(entities(text, spans, word_tags, plain))
        for text, spans, word_tags in zip(texts, words, tags, strict=True)
    ]


def predict_rows(model: Any, tokenizer: Any, asked: Asked) -> list[dict[str, Any]]:
    """Return the entities of each text as objects for JSON."""
    if asked.pairs:
        raise FinepruneError(
            "predict: this model finds entities, in single texts; leave the second texts out"
        )
    predictions = predict_entities(model, tokenizer, asked.texts, **asked.reading())
    return [
        {"text": text, "entities": [asdict(entity) for entity in found]}
        for text, found in zip(asked.texts, predictions, strict=True)
    ]


def text_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each entity, and a blank line between texts."""
    for index, row in enumerate(rows):
        if index:
            yield ""
        for entity in row["entities"]:
            place = f"{entity['start']}-{entity['end']}"
            yield f"{entity['label']}\t{entity['score']:.4f}\t{place}\t{entity['text']}"


def _tags_of_tokens(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], sources: list[int], batch_size: int
) -> list[tuple[int, list[tuple[str, float]]]]:
    """Return the index of each row, and the best tag of each of its tokens with its probability."""
    import torch

    from fineprune.pruning.probe import evaluating

    labels = labels_of(model)
    collate = RightPadding(tokenizer)
    tags = []
    with evaluating(model), torch.inference_mode():
        for batch in longest_first([len(row["input_ids"]) for row in rows], batch_size):
            inputs = collate([rows[index] for index in batch]).to(model.device)
            logits = model(**inputs).logits.float().cpu()
            lengths = [len(rows[index]["input_ids"]) for index in batch]
            check_finite(logits, [sources[index] for index in batch], lengths)
            scores, ids = logits.softmax(dim=-1).max(dim=-1)
            for index, row_ids, row_scores in zip(batch, ids.tolist(), scores.tolist(), strict=True):
                names = [labels[number] for number in row_ids]
                tags.append((index, list(zip(names, row_scores, strict=True))))
    return tags
