"""From a trained model to answers out of contexts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fineprune._padding import ensure_padding
from fineprune.errors import FinepruneError
from fineprune.pruning.probe import evaluating
from fineprune.tasks.questions.context_windows import RightPadding, make_windows
from fineprune.tasks.questions.spans import Answer, AnswerRules, best_answers, best_spans
from fineprune.tasks.questions.squad import Questions
from fineprune.tasks.questions.task import UNANSWERABLE
from fineprune.tasks.text.prediction import check_texts, fitting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    unanswerable: bool | None = None,
    max_length: int = 384,
    stride: int | None = None,
    n_best: int = 20,
    max_answer_length: int = 30,
    batch_size: int = 32,
) -> list[Answer]:
    """The best answer to each question out of the context at the same place, in the order given.

    `unanswerable`: the answer may be that there is none, Answer("", …); for models trained on such
    questions, and by default for those that say so in their config. `max_length` is at most what
    model and tokenizer take; a longer context is read in windows that overlap by `stride` tokens. A
    context in which nothing can be the answer gives Answer("", 0.0, 0, 0). Runs on the model's device,
    in evaluation mode; each module's training mode is as before afterwards. Raises `FinepruneError` for
    texts that are none, lists of different length, and a model without the two outputs.
    """
    import numpy as np
    import torch

    check_texts(questions, contexts, batch_size)
    if not questions:
        return []
    ensure_padding(model, tokenizer)
    longest = fitting(max_length, model, tokenizer)
    names = [str(row) for row in range(len(questions))]
    read = Questions(names, list(questions), list(contexts), [[] for _ in names])
    windows = make_windows(read, tokenizer, longest, stride)
    rows = windows.rows().remove_columns(["start_positions", "end_positions"])
    lengths = windows.lengths()
    order = np.argsort(-lengths, kind="stable").tolist()
    collate = RightPadding(tokenizer)
    logits = np.zeros((2, len(windows), int(lengths.max())), dtype=np.float32)
    with evaluating(model), torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            output = model(**collate(list(rows.select(batch))).to(model.device))
            if "start_logits" not in output:
                raise FinepruneError(
                    f"answer: the model is a {type(model).__name__}, which has no logits of starts and ends; "
                    "it takes a model that was trained to answer questions"
                )
            for values, given in zip(logits, (output.start_logits, output.end_logits), strict=True):
                values[batch, : given.shape[1]] = given.float().cpu().numpy()
    if unanswerable is None:
        unanswerable = bool(getattr(model.config, UNANSWERABLE, False))
    rules = AnswerRules(unanswerable, n_best=n_best, max_answer_length=max_answer_length)
    spans = best_spans(windows, logits[0], logits[1], rules)
    return [known[0] for known in best_answers(spans, read.contexts)]
