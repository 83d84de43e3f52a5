"""Read questions with a context and the places of their answers from SQuAD's files, tables and the hub.

The official files nest articles, paragraphs and questions (`data`, `paragraphs`, `qas`; Rajpurkar et
al., 2016 and 2018). Tables and hub data sets have a row a question, with the same names.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._messages import one_line
from fineprune._text_files import check_unicode, find_file, read_text
from fineprune.errors import FinepruneError
from fineprune.tasks.tables import hub_name, read_hub, read_table

COLUMNS = ("id", "question", "context", "answers")

_log = logging.getLogger("fineprune")


class Span(NamedTuple):
    """An answer: its text, and the character of the context at which it starts."""

    text: str
    start: int


@dataclass(frozen=True)
class Questions:
    """Rows of the task, all lists of one length; empty `answers`: the context does not hold one."""

    ids: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    answers: list[list[Span]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def read_file(path: str | Path, unanswerable: bool = False, mismatched: str = "stop") -> Questions:
    """Read an official SQuAD file (`.json`), or rows `id, question, context, answers` (JSONL, Parquet).

    Args:
        path: the file.
        unanswerable: allow questions without answers, as in SQuAD v2.
        mismatched: for an answer that differs from the context at its place: "stop" raises, "skip" drops
            it, and a question that loses its last answer with it; the numbers are logged once.

    Raises:
        FinepruneError: with the file and the question's id: a text or an answer is missing or wrong, an id
            occurs twice; or the file does not exist, is not JSON, is nested in another way, or has no
            questions.
    """
    path = Path(path).expanduser()
    check_suffix(path)
    rows = _nested(path) if path.suffix.lower() == ".json" else _flat(str(path), read_table(path, COLUMNS))
    return _checked(str(path), rows, unanswerable, mismatched)


def check_suffix(path: Path) -> None:
    """Raise `FinepruneError` for a file that cannot have questions, by its name."""
    if path.suffix.lower() not in (".json", ".jsonl", ".parquet"):
        raise FinepruneError(
            f"{path}: cannot read questions from a file named *{path.suffix}; "
            "known are .json (SQuAD's own nesting), .jsonl and .parquet (a row a question)"
        )


def read_split(
    place: tuple[str, str | None, str], unanswerable: bool = False, mismatched: str = "stop"
) -> Questions:
    """Read the same from the hub: `place` is the data set's name (`squad_v2`), its subset and the split."""
    where = hub_name(*place)
    table, _ = read_hub(*place, COLUMNS)
    return _checked(where, _flat(where, table), unanswerable, mismatched)


def _flat(where: str, table: dict[str, list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row with its place, for messages."""
    for number, cells in enumerate(zip(*table.values(), strict=True), start=1):
        yield f"{where}, row {number}", dict(zip(table, cells, strict=True))


def read_paragraphs(path: Path) -> list[str]:
    """Return the different paragraphs of an official SQuAD file, also those without a question; no blank one.

    Raises:
        FinepruneError: the file cannot be read or is nested in another way, or a paragraph is not text.
    """
    found: dict[str, None] = {}
    for place, paragraph in _paragraphs(path):
        if not _is_blank(paragraph.get("context")):
            found[_text(f"{path}, {place}", paragraph, "context")] = None
    return list(found)


def _nested(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, paragraph in _paragraphs(path):
        for q, question in enumerate(_items(path, paragraph, "qas", place)):
            if not isinstance(question, dict):
                raise _wrongly_nested(path, f"{place}.qas[{q}] is {_short(question)}, not an object")
            yield f"{path}, {place}.qas[{q}]", {"context": paragraph.get("context")} | question


def _paragraphs(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each paragraph with its place in the file."""
    for a, article in enumerate(_items(path, _parse(path), "data", "")):
        for p, paragraph in enumerate(_items(path, article, "paragraphs", f"data[{a}]")):
            place = f"data[{a}].paragraphs[{p}]"
            if not isinstance(paragraph, dict):
                raise _wrongly_nested(path, f"{place} holds {_short(paragraph)}, not an object")
            yield place, paragraph


def _parse(path: Path) -> Any:
    text = read_text(find_file(path))
    if not text.strip():
        raise FinepruneError(f"{path}: the file is empty")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FinepruneError(f"{path}: not JSON: {one_line(error)}; a row a line is .jsonl") from error


def _items(path: Path, value: Any, key: str, place: str) -> list[Any]:
    """Return the list `value[key]`."""
    here = place or "the file"
    if not isinstance(value, dict):
        raise _wrongly_nested(path, f"{here} holds {_short(value)}, not an object")
    if not isinstance(value.get(key), list):
        raise _wrongly_nested(path, f"{here} has no list {key!r}")
    return value[key]  # type: ignore[no-any-return]


def _wrongly_nested(path: Path, what: str) -> FinepruneError:
    return FinepruneError(
        f"{path}: {what}; expected the nesting of SQuAD (data, paragraphs, qas), or name rows .jsonl"
    )


def _checked(
    where: str, rows: Iterator[tuple[str, dict[str, Any]]], unanswerable: bool, mismatched: str
) -> Questions:
    read = Questions()
    known: set[str] = set()
    skipped = lost = 0
    for place, row in rows:
        name = row.get("id")
        if not isinstance(name, str) or not name:
            raise FinepruneError(f"{place}: id is {_short(name)}, expected text")
        at = f"{where}, question {name!r}"
        if name in known:
            raise FinepruneError(f"{at}: the id occurs twice; ids tell the answers apart")
        known.add(name)
        question, context = _text(at, row, "question"), _text(at, row, "context")
        given = _answers(at, row.get("answers"))
        if not given and not unanswerable:
            raise FinepruneError(
                f"{at}: has no answers; set task.unanswerable: true if questions may have none"
            )
        found = [span for span in given if _is_at_its_place(at, span, context, mismatched)]
        skipped += len(given) - len(found)
        if given and not found:
            lost += 1
            continue
        read.ids.append(name)
        read.questions.append(question)
        read.contexts.append(context)
        read.answers.append(found)
    if not known:
        raise FinepruneError(f"{where}: has no questions")
    if not len(read):
        raise FinepruneError(f"{where}: no question remains, since every answer is elsewhere in its context")
    if skipped:
        _log.warning(
            "%s: %d answers are not at their places and were skipped, and %d questions with them",
            where,
            skipped,
            lost,
        )
    return read


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _text(at: str, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or _is_blank(value):
        raise FinepruneError(f"{at}: {key} is {_short(value)}, expected text")
    check_unicode(value, f"{at}: {key}")
    return value


def _answers(at: str, value: Any) -> list[Span]:
    """Return the answers of a list of objects (the files), or of an object of lists (tables and the hub)."""
    form = "expected text and answer_start of each"
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise FinepruneError(f"{at}: answers is {_short(value)}; {form}, lists of one length")
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        pairs = [(entry.get("text"), entry.get("answer_start")) for entry in value]
    else:
        raise FinepruneError(f"{at}: answers is {_short(value)}; {form}")
    for text, start in pairs:
        if not isinstance(text, str) or not text.strip():
            raise FinepruneError(f"{at}: an answer is {_short(text)}; leave answers empty if there is none")
        if isinstance(start, bool) or not isinstance(start, int):
            raise FinepruneError(f"{at}: answer_start is {_short(start)}, expected a whole number")
    return [Span(text, start) for text, start in pairs]


def _is_at_its_place(at: str, span: Span, context: str, mismatched: str) -> bool:
    """Return whether the answer is the context's text at its place; raise if it must be."""
    there = context[span.start : span.start + len(span.text)] if span.start >= 0 else ""
    if there == span.text:
        return True
    if mismatched == "skip":
        return False
    inside = 0 <= span.start < len(context)
    has = f"has {_short(there)} there" if inside else f"ends at {len(context)}"
    raise FinepruneError(
        f"{at}: the answer {_short(span.text)} is not at {span.start} of the context, which {has}; "
        "correct answer_start, or set task.mismatched: skip"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
