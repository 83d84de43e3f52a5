"""Turn the tags of words into entities by the rules of conlleval, as seqeval reads them."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from fineprune_runtime.results import Entity

_PREFIXES = ("B-", "I-", "E-", "S-")


def are_entities(tags: Sequence[str]) -> bool:
    """Return whether all tags mark entities: each is O, or B-, I-, E- or S- with a type."""
    return all(tag == "O" or tag.startswith(_PREFIXES) for tag in tags)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the characters [start, end) of each word; words are separated by white space."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def begun_words(
    texts: Sequence[str],
    starts: Sequence[Sequence[int]],
    sources: Sequence[int],
    offsets: Sequence[Sequence[tuple[int, int]]],
) -> list[tuple[int, list[int | None]]]:
    """Find the tokens at which words begin.

    Args:
        texts: the texts.
        starts: for each text, the characters at which its words begin.
        sources: for each row of tokens, the index of its text. The rows of one text may come in any order:
            a tokenizer that truncates on the left gives the last one first.
        offsets: for each row, the characters [start, end) of each token.

    Returns:
        For each row, the index of its text and, for each token, the index of the word that it begins; None
        for a token that begins no word.
    """
    rows: list[tuple[int, list[int | None]]] = [(source, []) for source in sources]
    begun = [-1] * len(texts)  # the last word that has begun
    firsts = [min((start for start, end in spans if start < end), default=0) for spans in offsets]
    for index in sorted(range(len(rows)), key=firsts.__getitem__):
        source, row = rows[index]
        for start, end in offsets[index]:
            while start < end and texts[source][start].isspace():
                start += 1
            word = bisect_right(starts[source], start) - 1 if start < end else -1
            row.append(word if word > begun[source] else None)
            begun[source] = max(begun[source], word)
    return rows


def entities(
    text: str, spans: Sequence[tuple[int, int]], tags: Mapping[int, tuple[str, float]], plain: bool
) -> Iterator[Entity]:
    """Yield the entities of one text.

    Args:
        text: the text.
        spans: the characters [start, end) of each word.
        tags: the tag and its probability, by index of the word. A word without tokens (a lone zero-width
            space) has none, and counts as O.
        plain: the tags do not mark entities (parts of speech, for one), so each word is an entity.
    """
    if plain:
        parts = [(tag, word, word) for word, (tag, _) in sorted(tags.items())]
    else:
        parts = chunks([tags.get(word, ("O", 0.0))[0] for word in range(len(spans))])
    for label, first, last in parts:
        start, end = spans[first][0], spans[last][1]
        scores = [tags[word][1] for word in range(first, last + 1)]
        yield Entity(label, text[start:end], start, end, sum(scores) / len(scores))


def chunks(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the type, first word and last word of each entity in the tags of a text.

    B and S begin an entity, E and S end one. An I or E that does not continue an entity of its type begins
    one too, as in conlleval.
    """
    chunks_found = []
    kind, first, before = "", -1, "O"  # first is -1 outside of entities
    for word, tag in enumerate([*tags, "O"]):
        mark, of = tag[0], tag[2:] or "_"
        if first >= 0 and (mark in "BSO" or before in "ES" or of != kind):
            chunks_found.append((kind, first, word - 1))
            first = -1
        if first < 0 and mark != "O":
            kind, first = of, word
        before = mark
    return chunks_found
