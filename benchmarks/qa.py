"""Reading, windows and post-processing of SQuAD's dev questions, timed on one core.

    taskset -c 0 python benchmarks/qa.py ../shared/data/squad/dev-v1.1.json

The questions are repeated to 10,000; the logits are random, so that many pairs compete. `answers` is
from logits to the n best answers, `texts` to the best text only, as an evaluation needs it.

Then the same of each question once, against plain loops over windows of the tokenizer's own making: how
many texts differ, and the scores of both by torchmetrics, with all digits.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torchmetrics.functional.text import squad
from transformers import AutoTokenizer

from fineprune.checkpoint.model_folder import minilm_folder
from fineprune.tasks.questions.context_windows import ContextWindows, make_windows
from fineprune.tasks.questions.spans import AnswerRules, best_answers, best_spans, best_texts, score_texts
from fineprune.tasks.questions.squad import Questions, read_file


def timed(name: str, call: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    result = call()
    print(f"{name:12} {time.perf_counter() - begin:6.2f} s")
    return result


def repeated(read: Questions, count: int) -> Questions:
    rows = [index % len(read) for index in range(count)]
    return Questions(
        [f"{read.ids[row]}-{index}" for index, row in enumerate(rows)],
        [read.questions[row] for row in rows],
        [read.contexts[row] for row in rows],
        [read.answers[row] for row in rows],
    )


def by_loops(
    read: Questions, tokenizer: Any, length: int, starts: Any, ends: Any, unanswerable: bool
) -> list[str]:
    """The best text of each question by loops over the 20 best starts and ends of each window."""
    texts, row = [], 0
    for question, context in zip(read.questions, read.contexts, strict=True):
        cut = {"truncation": "only_second", "max_length": length, "stride": 128}
        made = tokenizer(
            question, context, return_overflowing_tokens=True, return_offsets_mapping=True, **cut
        )
        best, text, nothing = -np.inf, "", np.inf
        for window, places in enumerate(made["offset_mapping"]):
            owners = made.sequence_ids(window)
            first, last = starts[row, : len(places)], ends[row, : len(places)]
            row += 1
            nothing = min(nothing, first[0] + last[0])  # [CLS]
            for one in np.argsort(-first)[:20]:
                for two in np.argsort(-last)[:20]:
                    whole = owners[one] == owners[two] == 1 and 0 <= two - one < 30
                    if whole and first[one] + last[two] > best:
                        best, text = first[one] + last[two], context[places[one][0] : places[two][1]]
        texts.append("" if unanswerable and nothing > best else text)
    return texts


def official(texts: list[str], read: Questions) -> dict[str, float]:
    """What torchmetrics says of them, in percent."""
    rows = list(zip(texts, read.ids, read.answers, strict=True))
    guesses = [{"id": name, "prediction_text": text} for text, name, _ in rows]
    truths = [{"id": name, "answers": {"text": [span.text for span in spans]}} for _, name, spans in rows]
    return {name: float(value) for name, value in squad(guesses, truths).items()}


def compare(
    read: Questions, windows: ContextWindows, tokenizer: Any, length: int, starts: Any, ends: Any
) -> None:
    """Our texts and scores of all questions beside those of the loops."""
    for unanswerable in (False, True):
        ours = best_texts(best_spans(windows, starts, ends, AnswerRules(unanswerable)), read.contexts)
        plain = by_loops(read, tokenizer, length, starts, ends, unanswerable)
        unlike = sum(one != two for one, two in zip(ours, plain, strict=True))
        print(f"{len(ours)} questions{', SQuAD v2' * unanswerable}: {unlike} texts differ from plain loops'")
        print(f"  fineprune:   {score_texts(ours, read)}")
        print(f"  torchmetrics on the loops' texts, percent: {official(plain, read)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="an official SQuAD file")
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--max-length", type=int, default=384)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    once = timed("read", lambda: read_file(arguments.data))
    read = repeated(once, arguments.questions)
    windows = timed("windows", lambda: make_windows(read, tokenizer, arguments.max_length))
    generator = np.random.default_rng(0)
    shape = (len(windows), arguments.max_length)
    starts, ends = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
    print(f"{len(read)} questions, {len(windows)} windows of at most {arguments.max_length} tokens")
    for unanswerable in (False, True):
        print("SQuAD v2" if unanswerable else "SQuAD v1.1")
        spans = timed("spans", lambda v2=unanswerable: best_spans(windows, starts, ends, AnswerRules(v2)))
        timed("answers", lambda found=spans: best_answers(found, read.contexts))
        texts = timed("texts", lambda found=spans: best_texts(found, read.contexts))
        print(timed("scores", lambda best=texts: score_texts(best, read)))
    windows = make_windows(once, tokenizer, arguments.max_length)
    shape = (len(windows), arguments.max_length)
    starts, ends = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
    each = np.arange(len(windows))
    starts[each, windows.column("start_positions")] += 3  # so that some answers are right
    ends[each, windows.column("end_positions")] += 3
    starts[::3, 0] += 9  # and some, for SQuAD v2, say that there is none
    compare(once, windows, tokenizer, arguments.max_length, starts, ends)


if __name__ == "__main__":
    main()
