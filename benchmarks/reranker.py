r"""A reranker from SQuAD: which sentence of a paragraph has the answer to a question?

    python benchmarks/reranker.py rows --out runs/reranker
    fineprune run short task.train=runs/reranker/train.jsonl task.validation=runs/reranker/dev.jsonl \
        'task.text=[question, sentence]' pruning.density=0.25 --out runs/reranker-25
    fineprune compact runs/reranker-25 small
    python benchmarks/reranker.py rank small [SMALL…] [--dtype int8]

`rows` writes pairs of a question and a sentence of its paragraph, as QNLI has them: of each question the
sentence in which its first answer begins, and one other by chance; of the dev file 1,000 questions.
`rank` orders all sentences of the paragraphs of 1,000 other dev questions by each model, with
fineprune_runtime, and prints the share of the questions whose sentence comes first, and the MRR.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import fineprune_runtime
from fineprune.tasks.questions.squad import read_file

DATA = Path("../shared/data/squad")
# Not behind the capital letters and short words of U.S. and Mr.
_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b[A-Z][a-z]\.)(?<!\b[A-Z][a-z]{2}\.)\s+(?=[\"'(]?[A-Z0-9])")


class Asked(NamedTuple):
    """A question, the sentences of its paragraph, and the index of the one with the answer."""

    question: str
    sentences: list[str]
    right: int


def questions(path: Path, seed: int = 0) -> list[Asked]:
    """The questions of a file whose paragraph has two sentences or more, shuffled."""
    read = read_file(path)
    found = []
    for question, context, answers in zip(read.questions, read.contexts, read.answers, strict=True):
        starts = [0, *(match.end() for match in _END.finditer(context))]
        sentences = [context[one:two].strip() for one, two in zip(starts, [*starts[1:], None], strict=True)]
        right = sum(start <= answers[0].start for start in starts) - 1
        if len(sentences) > 1:
            found.append(Asked(question, sentences, right))
    random.Random(seed).shuffle(found)
    return found


def pairs(asked: list[Asked], seed: int = 0) -> Iterator[dict[str, str | int]]:
    """Two rows of each question: the right sentence, and another one."""
    generator = random.Random(seed)
    for question, sentences, right in asked:
        wrong = generator.choice([index for index in range(len(sentences)) if index != right])
        yield {"question": question, "sentence": sentences[right], "label": 1}
        yield {"question": question, "sentence": sentences[wrong], "label": 0}


def write(asked: list[Asked], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(pairs(asked))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(rows):,} pairs of {len(asked):,} questions")


def rank(folder: str, dtype: str, asked: list[Asked]) -> np.ndarray:
    """The rank, from 1, that a model gives to the right sentence of each question; behind equal scores."""
    model = fineprune_runtime.load(folder, dtype=dtype)
    first = [each.question for each in asked for _ in each.sentences]
    second = [sentence for each in asked for sentence in each.sentences]
    scores = np.array([found[1] - found[0] for found in model.logits(first, second)])
    ends = np.cumsum([len(each.sentences) for each in asked])
    parts = np.split(scores, ends[:-1])
    return np.array([(part >= part[each.right]).sum() for part, each in zip(parts, asked, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of train-v1.1.json, dev-v1.1.json")
    parser.add_argument("--count", type=int, default=1000, help="dev questions to score on, and to rank")
    commands = parser.add_subparsers(dest="command", required=True)
    rows = commands.add_parser("rows", help="write train.jsonl and dev.jsonl")
    rows.add_argument("--out", type=Path, default=Path("runs/reranker"))
    ranked = commands.add_parser("rank", help="rank sentences by packed models")
    ranked.add_argument("models", nargs="+", help="folders of `fineprune compact`")
    ranked.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    dev = questions(arguments.data / "dev-v1.1.json")
    if arguments.command == "rows":
        train = questions(arguments.data / "train-v1.1.json")
        write(train, arguments.out / "train.jsonl")
        write(dev[: arguments.count], arguments.out / "dev.jsonl")
        return
    asked = dev[arguments.count : 2 * arguments.count]
    sizes = np.array([len(each.sentences) for each in asked])
    print(f"{len(asked):,} questions, {sizes.sum():,} sentences")
    by_chance = np.mean([(1 / np.arange(1, size + 1)).mean() for size in sizes])
    print(f"{'by chance':40} first {(1 / sizes).mean():6.1%}  MRR {by_chance:.3f}")
    for folder in arguments.models:
        ranks = rank(folder, arguments.dtype, asked)
        name = f"{folder}, {arguments.dtype}"
        print(f"{name:40} first {(ranks == 1).mean():6.1%}  MRR {(1 / ranks).mean():.3f}")


if __name__ == "__main__":
    main()
