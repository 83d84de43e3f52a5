"""From the cells of a tag column to ids."""

from collections.abc import Sequence
from typing import Any

from fineprune._messages import listing
from fineprune.errors import FinepruneError
from fineprune.tasks.tokens.files import Sentence

MOST_TAGS = 1000  # that are inferred: a column with more is hardly one of tags


def infer_tags(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """Return the tags that occur, in order: numbers by value, text by the alphabet.

    Raises:
        FinepruneError: a word without a tag, too many different tags, or numbers beside text.
    """
    distinct: dict[Any, str] = {}
    for sentence in sentences:
        for index, cell in enumerate(sentence.tags):
            _check_cell(sentence, index, cell)
            distinct.setdefault(cell, str(cell))
        if len(distinct) > MOST_TAGS:
            raise FinepruneError(
                f"{sentence.where(0)}: by here more than {MOST_TAGS:,} different tags, such as "
                f"{listing(list(distinct)[:5])}; name the right column with `tags`, or give `labels`"
            )
    numbers = [cell for cell in distinct if isinstance(cell, int)]
    if len(numbers) == len(distinct):
        return tuple(str(cell) for cell in sorted(numbers))
    if numbers:
        texts = [cell for cell in distinct if isinstance(cell, str)]
        raise FinepruneError(
            f"{sentences[0].place}: some tags are numbers ({numbers[0]}), others text ({texts[0]!r}); "
            "give `labels`, or make them one"
        )
    return tuple(sorted(set(distinct.values())))


def tag_ids(
    sentences: Sequence[Sentence], known: Sequence[str], named: Sequence[str] | None = None
) -> list[list[int]]:
    """Return the id of each tag.

    Where the `known` tags are numbers themselves, a number is a tag, never a position.

    Args:
        sentences: their cells are tags, or numbers of tags.
        known: the tags by id.
        named: the tags by number, where the numbers in cells count otherwise than `known`.

    Raises:
        FinepruneError: a word without a tag, or with an unknown one.
    """
    ids: dict[Any, int] = {tag: index for index, tag in enumerate(known)}
    if named is not None and set(named) <= set(known):
        ids |= {index: ids[tag] for index, tag in enumerate(named)}
    elif named is None and all(tag.isdigit() for tag in known):
        ids |= {int(tag): index for tag, index in list(ids.items())}
    else:
        ids |= {index: index for index in range(len(known))}
    result = []
    for sentence in sentences:
        for index, cell in enumerate(sentence.tags):
            _check_cell(sentence, index, cell)
            if cell not in ids:
                raise FinepruneError(
                    f"{sentence.where(index)}: tag {cell!r} of {sentence.words[index]!r} is not known; "
                    f"known are {listing(known)}. If it is right, list all tags as `labels`"
                )
        result.append([ids[cell] for cell in sentence.tags])
    return result


def _check_cell(sentence: Sentence, index: int, cell: Any) -> None:
    if isinstance(cell, bool) or not isinstance(cell, str | int) or cell in ("", -1, -100):
        raise FinepruneError(f"{sentence.where(index)}: {sentence.words[index]!r} has no tag ({cell!r})")
