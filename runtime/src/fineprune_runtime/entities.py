"""From the tags of words to entities: the rules of conlleval, as seqeval reads them."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from fineprune_runtime.results import Entity

_PREFIXES = ("B-", "I-", "E-", "S-")


def are_entities(tags: Sequence[str]) -> bool:
    """Whether the tags mark entities: O, or B-, I-, E-, S- with a type."""
    return all(tag == "O" or tag.startswith(_PREFIXES) for tag in tags)


def word_spans(text: str) -> list[tuple[int, int]]:
    """First and last character (exclusive) of each word; words are what stands between white space."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def begun_words(
    texts: Sequence[str],
    starts: Sequence[Sequence[int]],
    sources: Sequence[int],
    offsets: Sequence[Sequence[tuple[int, int]]],
) -> list[tuple[int, list[int | None]]]:
    """Where words begin in rows of tokens: for each row, the number of its text and, token by token, the
    number of the word that the token begins; None where it begins none.

    `starts` are the characters at which the words of each text begin. `sources` names the text
    of each row, rows of one text one after the other, and `offsets` the characters of its tokens.
    """
    places: list[tuple[int, list[int | None]]] = []
    last, begun = -1, -1
    for source, spans in zip(sources, offsets, strict=True):
        if source != last:
            last, begun = source, -1
        row: list[int | None] = []
        for start, end in spans:
            while start < end and texts[source][start].isspace():
                start += 1
            word = bisect_right(starts[source], start) - 1 if start < end else -1
            row.append(word if word > begun else None)
            begun = max(begun, word)
        places.append((source, row))
    return places


def entities(
    text: str, spans: Sequence[tuple[int, int]], tags: Mapping[int, tuple[str, float]], plain: bool
) -> Iterator[Entity]:
    """The entities of one text. `tags`: of each word of `spans`, its tag and probability.

    `plain`: the tags are not of entities (parts of speech), so each word is one. A word that no token
    stands for (a lone zero-width space) is outside.
    """
    if plain:
        found = [(tag, word, word) for word, (tag, _) in sorted(tags.items())]
    else:
        found = chunks([tags.get(word, ("O", 0.0))[0] for word in range(len(spans))])
    for label, first, last in found:
        start, end = spans[first][0], spans[last][1]
        scores = [tags[word][1] for word in range(first, last + 1)]
        yield Entity(label, text[start:end], start, end, sum(scores) / len(scores))


def chunks(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Type, first and last word of each entity in the tags of a text.

    B and S begin one, E and S end one; an I or E that nothing of its type runs up to begins one too,
    as in conlleval.
    """
    found = []
    kind, first, before = "", -1, "O"  # first -1: outside
    for word, tag in enumerate([*tags, "O"]):
        mark, of = tag[0], tag[2:] or "_"
        if first >= 0 and (mark in "BSO" or before in "ES" or of != kind):
            found.append((kind, first, word - 1))
            first = -1
        if first < 0 and mark != "O":
            kind, first = of, word
        before = mark
    return found
