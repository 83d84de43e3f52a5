"""Reading, windows and post-processing of SQuAD's dev questions, timed on one core.

    taskset -c 0 python benchmarks/qa.py ../shared/data/squad/dev-v1.1.json

The questions are repeated to 10,000; the logits are random, so that many pairs compete. `answers` is
from logits to the n best answers, `texts` to the best text only, as an evaluation needs it.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from transformers import AutoTokenizer

from fineprune.tasks.modeling import minilm_folder
from fineprune.tasks.qa_answers import best_answers, best_spans, best_texts, score_texts
from fineprune.tasks.qa_features import make_windows
from fineprune.tasks.squad import Questions, read_file


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="an official SQuAD file")
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--max-length", type=int, default=384)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    read = repeated(timed("read", lambda: read_file(arguments.data)), arguments.questions)
    windows = timed("windows", lambda: make_windows(read, tokenizer, arguments.max_length))
    generator = np.random.default_rng(0)
    shape = (len(windows), arguments.max_length)
    starts, ends = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
    print(f"{len(read)} questions, {len(windows)} windows of at most {arguments.max_length} tokens")
    for unanswerable in (False, True):
        print("SQuAD v2" if unanswerable else "SQuAD v1.1")
        spans = timed("spans", lambda v2=unanswerable: best_spans(windows, starts, ends, unanswerable=v2))
        timed("answers", lambda found=spans: best_answers(found, read.contexts))
        texts = timed("texts", lambda found=spans: best_texts(found, read.contexts))
        print(timed("scores", lambda best=texts: score_texts(best, read)))


if __name__ == "__main__":
    main()
