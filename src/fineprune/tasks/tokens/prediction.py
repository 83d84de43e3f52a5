"""From a trained tagger to the entities of plain text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fineprune._padding import ensure_padding
from fineprune.pruning.probe import evaluating
from fineprune.tasks.text.prediction import check_texts, fitting
from fineprune.tasks.tokens.word_windows import windows
from fineprune_runtime.entities import are_entities, entities, word_spans
from fineprune_runtime.results import Entity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    `max_length` tokens, or of what the model takes if that is less. Raises `FinepruneError` as
    `prediction.predict` does.
    """
    import torch
    from transformers import DataCollatorWithPadding

    check_texts(texts, None, batch_size)
    ensure_padding(model, tokenizer)
    words = [word_spans(text) for text in texts]
    known = [model.config.id2label[index] for index in range(model.config.num_labels)]
    found: list[dict[int, tuple[str, float]]] = [{} for _ in texts]  # of each word, its tag and probability
    if texts:
        starts = [[start for start, _ in spans] for spans in words]
        columns, places = windows(texts, starts, tokenizer, fitting(max_length, model, tokenizer))
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
        list(entities(text, spans, tags, plain))
        for text, spans, tags in zip(texts, words, found, strict=True)
    ]
