"""Data files of the tasks. What is read of a file that is right is its rows, cell by cell."""

import csv
import io
import random
from pathlib import Path
from typing import Any

from fuzz.mutation import ODD, changed, dumped, mangled

from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import task_config

_TEXTS = [
    "good film", "bad", " x ", "a, b", 'say "x"', "it's", "\u2028", "a\u0085b", "x\x1cy", "x\x0by", "\xa0",
    "é€😀", "=1+1", "NaN", "null", "0",
    "\ufeff", "#", "-DOCSTART-", "\u200b", "[SEP]", "a\\b", "\\N", "'", "x" * 300,
]  # fmt: skip
_BREAKS = ["a\nb", "a\r\nb", "a\tb", "\r", 'x"\n"y', "\t"]  # where quotes or JSON hold them
_LABELS = (("bad", "good"), ("0", "1"), ("a b", "é"), ("no", "yes"), ("-1", "1"), ("true", "false"))
_TAGS = ("O", "B-PER", "I-PER")


class Data:
    """`Source.load` of each kind of task."""

    share = 12.0
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        self.size = 5000

    def check(self, chance: random.Random, scratch: Path) -> str:
        make = chance.choice((self._table, self._table, self._table, self._conll, self._tokens, self._squad))
        name, content, section, expected = make(chance)
        document = content if isinstance(content, dict | list) else None
        action = chance.choice(("none", "bytes", "structure", "structure"))
        if document is not None:
            if action == "structure":
                document = changed(chance, document, times=chance.choice((1, 1, 2)))
            content = (
                "\n".join(map(dumped, document))
                if name.endswith("l") and isinstance(document, list)
                else dumped(document)
            )
        elif action == "structure":
            content = _restructured(chance, str(content))
        raw = str(content).encode(errors="surrogatepass")
        if action == "bytes":
            raw = mangled(chance, raw)
        if action == "none" and chance.random() < 0.2:
            raw = b"\xef\xbb\xbf" + raw
        path = scratch / name
        path.write_bytes(raw)
        try:
            data: Any = task_config(section | {"train": str(path), "validation": str(path)}).load()
        except FinepruneError as error:
            if action == "none" and "label" not in str(error):
                raise AssertionError(f"refuses a file that is right: {error}") from error
            return "refused"
        got = _rows(data)
        if action == "none" and got != expected:
            raise AssertionError(f"reads {got!r}, the file has {expected!r}")
        return "same" if got == expected else "other"

    def _table(self, chance: random.Random) -> tuple[str, Any, dict[str, Any], Any]:
        form = chance.choice(("csv", "tsv", "jsonl"))
        texts = _TEXTS + (_BREAKS if form != "tsv" else [])
        names = chance.choice(_LABELS)
        pair = chance.random() < 0.4
        columns = ["text", "other", "label"] if pair else ["text", "label"]
        rows = [
            [*(chance.choice(texts) for _ in columns[1:]), names[index % 2]]
            for index in range(chance.choice((2, 3, 8)))
        ]
        section: dict[str, Any] = {"kind": "classification", "labels": list(names)}
        section |= {"text": ["text", "other"]} if pair else {}
        expected = [(row[0], row[1] if pair else None, names.index(row[-1])) for row in rows]
        if form == "jsonl":
            return "data.jsonl", [dict(zip(columns, row, strict=True)) for row in rows], section, expected
        if form == "tsv":
            end = chance.choice(("\n", "\r\n"))
            return "data.tsv", end.join("\t".join(row) for row in [columns, *rows]) + end, section, expected
        out = io.StringIO()
        csv.writer(out, lineterminator=chance.choice(("\n", "\r\n")), quoting=csv.QUOTE_ALL).writerows(
            [columns, *rows]
        )
        return "data.csv", out.getvalue(), section, expected

    def _sentences(self, chance: random.Random) -> list[tuple[list[str], list[str]]]:
        words = [
            text
            for text in _TEXTS
            if not set(text) & set(" \n\t\r") and text not in ("#", "-DOCSTART-", "\ufeff")
        ]
        made = []
        for index in range(chance.choice((1, 2, 5))):
            count = chance.choice((2, 3, 6))
            tags = [_TAGS[(place + index) % 3] for place in range(count)]
            made.append(([chance.choice(words) for _ in range(count)], tags))
        return made

    def _conll(self, chance: random.Random) -> tuple[str, Any, dict[str, Any], Any]:
        sentences = self._sentences(chance)
        gap = chance.choice((" ", "\t"))
        blocks = [
            "\n".join(gap.join((word, tag)) for word, tag in zip(*each, strict=True)) for each in sentences
        ]
        start = chance.choice(("", f"-DOCSTART-{gap}O\n\n", "\n\n"))
        section = {"kind": "token_classification", "labels": list(_TAGS)}
        return "data.conll", start + "\n\n".join(blocks) + "\n", section, _tagged(sentences)

    def _tokens(self, chance: random.Random) -> tuple[str, Any, dict[str, Any], Any]:
        sentences = self._sentences(chance)
        rows = [{"tokens": words, "ner_tags": tags} for words, tags in sentences]
        return "data.jsonl", rows, {"kind": "token_classification", "labels": list(_TAGS)}, _tagged(sentences)

    def _squad(self, chance: random.Random) -> tuple[str, Any, dict[str, Any], Any]:
        questions = []
        for index in range(chance.choice((1, 2, 4))):
            before, answer, after = (chance.choice(_TEXTS + _BREAKS) for _ in range(3))
            answer = answer if answer.strip() else "x"
            questions.append((f"q{index}", "who?", before + answer + after, [(answer, len(before))]))
        section = {"kind": "question_answering"}
        expected = [(*row[:3], list(row[3])) for row in questions]
        nested = chance.random() < 0.5
        if nested:
            paragraphs = [
                {
                    "context": context,
                    "qas": [{"id": name, "question": asked,
                             "answers": [{"text": text, "answer_start": start} for text, start in answers]}],
                }
                for name, asked, context, answers in questions
            ]  # fmt: skip
            return (
                "data.json",
                {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]},
                section,
                expected,
            )
        rows = [
            {"id": name, "question": asked, "context": context,
             "answers": {"text": [text for text, _ in answers],
                         "answer_start": [start for _, start in answers]}}
            for name, asked, context, answers in questions
        ]  # fmt: skip
        return "data.jsonl", rows, section, expected


def _tagged(sentences: list[tuple[list[str], list[str]]]) -> Any:
    return [(words, [_TAGS.index(tag) for tag in tags]) for words, tags in sentences]


def _rows(data: Any) -> Any:
    """The validation data as a list of rows."""
    found = data.validation
    if hasattr(found, "contexts"):
        spans = [[tuple(span) for span in answers] for answers in found.answers]
        return list(zip(found.ids, found.questions, found.contexts, spans, strict=True))
    if hasattr(found, "words"):
        return list(zip(map(list, found.words), map(list, found.tags), strict=True))
    pairs = found.pairs if found.pairs is not None else [None] * len(found)
    return list(zip(found.texts, pairs, found.labels or [], strict=True))


def _restructured(chance: random.Random, text: str) -> str:
    """Lines moved, doubled or cut, fields added, other separators."""
    lines = text.split("\n")
    place = chance.randrange(len(lines))
    action = chance.randrange(8)
    if action == 0:
        del lines[place]
    elif action == 1:
        lines.insert(place, lines[chance.randrange(len(lines))])
    elif action == 2:
        lines[place] += chance.choice((",x", "\tx", " x", '"', "\\", "\0"))
    elif action == 3:
        chance.shuffle(lines)
    elif action == 4:
        lines[place] = lines[place].replace(
            *chance.choice(((",", ";"), ("\t", " "), (" ", "\xa0"), ('"', "'")))
        )
    elif action == 5:
        lines[place] = str(chance.choice(ODD))
    elif action == 6:
        lines = lines[:1] * chance.choice((1, 2))
    else:
        return chance.choice(("\r", "\x1e", "\u2028")).join(lines)
    return "\n".join(lines)
