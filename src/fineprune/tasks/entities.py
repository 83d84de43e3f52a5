"""From a trained tagger to the entities of plain text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fineprune._padding import ensure_padding
from fineprune.tasks.prediction import check_texts, evaluating
from fineprune.tasks.token_classification import are_entities
from fineprune.tasks.windows import windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Entity:
    """A part of a text: its type, the characters `text[start:end]`, and the mean probability of its tags."""

    label: str
    text: str
    start: int
    end: int
    score: float


def predict_entities(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    batch_size: int = 32,
    max_length: int = 128,
) -> list[list[Entity]]:
    """The entities of each text, in the order given; words are what stands between white space.

    A word's tag is that of its first token. Tags become entities as seqeval reads them; where the
    tags are not of entities (parts of speech), each word is one. Long texts are read in pieces of
    `max_length` tokens. Raises `FinepruneError` as `prediction.predict` does.
    """
    import torch
    from transformers import DataCollatorWithPadding

    check_texts(texts, None, batch_size)
    ensure_padding(model, tokenizer)
    words = [[match.span() for match in re.finditer(r"\S+", text)] for text in texts]
    known = [model.config.id2label[index] for index in range(model.config.num_labels)]
    found: list[dict[int, tuple[str, float]]] = [{} for _ in texts]  # of each word, its tag and probability
    if texts:
        starts = [[start for start, _ in spans] for spans in words]
        columns, places = windows(texts, starts, tokenizer, max_length)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]), reverse=True)
        collate = DataCollatorWithPadding(tokenizer)
        with evaluating(model), torch.inference_mode():
            for begin in range(0, len(order), batch_size):
                batch = order[begin : begin + batch_size]
                inputs = collate([rows[index] for index in batch]).to(model.device)
                scores, ids = model(**inputs).logits.float().cpu().softmax(dim=-1).max(dim=-1)
                for index, row_ids, row_scores in zip(batch, ids.tolist(), scores.tolist(), strict=True):
                    source, begun = places[index]
                    for at, word in enumerate(begun):
                        if word is not None:
                            found[source][word] = (known[row_ids[at]], row_scores[at])
    plain = not are_entities(known)
    return [
        list(_entities(text, spans, tags, plain))
        for text, spans, tags in zip(texts, words, found, strict=True)
    ]


def _entities(
    text: str, spans: Sequence[tuple[int, int]], tags: dict[int, tuple[str, float]], plain: bool
) -> Any:
    """The entities of one text; a word that no token stands for (a lone zero-width space) is outside."""
    from seqeval.metrics.sequence_labeling import get_entities

    if plain:
        chunks = [(tag, word, word) for word, (tag, _) in sorted(tags.items())]
    else:
        chunks = get_entities([tags.get(word, ("O", 0.0))[0] for word in range(len(spans))])
    for label, first, last in chunks:
        start, end = spans[first][0], spans[last][1]
        scores = [tags[word][1] for word in range(first, last + 1)]
        yield Entity(label, text[start:end], start, end, sum(scores) / len(scores))
