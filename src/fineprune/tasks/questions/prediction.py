"""From a trained model to answers in contexts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fineprune._padding import ensure_padding
from fineprune.errors import FinepruneError
from fineprune.tasks.batches import (
    Asked,
    check_finite,
    fitting,
    longest_first,
    private_copy,
    read_texts,
    tokenizing,
    usual_length,
)
from fineprune.tasks.questions.context_windows import ContextWindows, RightPadding, make_windows
from fineprune.tasks.questions.data import UNANSWERABLE
from fineprune.tasks.questions.spans import Answer, AnswerRules, best_answers, best_spans
from fineprune.tasks.questions.squad import Questions
from fineprune.tasks.questions.task import QuestionAnsweringConfig
from fineprune_runtime.results import USUAL_WINDOW

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_USUAL_RULES = AnswerRules()


def answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Iterable[str],
    contexts: Iterable[str],
    rules: AnswerRules = _USUAL_RULES,
    *,
    max_length: int | None = None,
    batch_size: int = 32,
) -> list[Answer]:
    """Return the best answer to each question in the context at the same place, in the order given.

    The model runs on its device, in evaluation mode; each module's training mode is as before afterwards.

    Args:
        model: with the head of question answering.
        tokenizer: a fast one.
        questions: their texts.
        contexts: one for each question. Long ones are read in windows that overlap by `rules.stride` tokens.
        rules: which spans may be answers. `unanswerable=None` is what the model's config says.
        max_length: tokens of a window (None: those of the model's run, else 384), or what model and
            tokenizer take if that is less.
        batch_size: windows in one batch.

    Returns:
        Answer("", …) for "no answer"; Answer("", 0.0, 0, 0) for a context in which nothing can be the answer.

    Raises:
        FinepruneError: a text that is not a string, lists of different length, or a model without the two
            outputs.
    """
    questions, given = read_texts(questions, contexts, batch_size)
    assert given is not None
    if not questions:
        return []
    ensure_padding(model, tokenizer)
    tokenizer = private_copy(tokenizer)
    if rules.unanswerable is None:
        rules = replace(rules, unanswerable=bool(getattr(model.config, UNANSWERABLE, False)))
    names = [str(row) for row in range(len(questions))]
    asked = Questions(names, questions, given, [[] for _ in names])
    longest = fitting(max_length or usual_length(model, USUAL_WINDOW), model, tokenizer)
    with tokenizing():
        windows = make_windows(asked, tokenizer, longest, rules.stride)
    starts, ends = _logits(model, windows, RightPadding(tokenizer), batch_size)
    spans = best_spans(windows, starts, ends, rules)
    return [candidates[0] for candidates in best_answers(spans, asked.contexts)]


def predict_rows(model: Any, tokenizer: Any, asked: Asked) -> list[dict[str, Any]]:
    """Return the answers as objects for JSON, chosen by the rules of the recipe where there is one."""
    if not asked.pairs:
        raise FinepruneError('predict: the model answers questions; give the context of each as --pair "…"')
    rules = asked.task.rules() if isinstance(asked.task, QuestionAnsweringConfig) else _USUAL_RULES
    answers = answer(model, tokenizer, asked.texts, asked.pairs, rules, **asked.reading())
    return [
        {
            "text": question,
            "answer": best.text,
            "score": best.score,
            "start": best.start,
            "end": best.end,
            "pair": context,
        }
        for question, context, best in zip(asked.texts, asked.pairs, answers, strict=True)
    ]


def text_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each row: the answer, its score and the question."""
    for row in rows:
        best = " ".join(row["answer"].split()) or "(no answer)"
        yield f"{best}\t{row['score']:.4f}\t{row['text']}"


def _logits(model: Any, windows: ContextWindows, collate: RightPadding, batch_size: int) -> Any:
    """Return the logits of starts and ends, (2, windows, tokens of the longest window); 0 in padding."""
    import numpy as np
    import torch

    from fineprune.pruning.probe import evaluating

    rows = windows.rows().remove_columns(["start_positions", "end_positions"])
    lengths, questions = windows.lengths(), windows.column("question")
    logits = np.zeros((2, len(windows), int(lengths.max())), dtype=np.float32)
    with evaluating(model), torch.inference_mode():
        for batch in longest_first(lengths.tolist(), batch_size):
            output = model(**collate(list(rows.select(batch))).to(model.device))
            if "start_logits" not in output:
                raise FinepruneError(
                    f"answer: the model is a {type(model).__name__}, which has no logits of starts and ends; "
                    "it takes a model that was trained to answer questions"
                )
            for values, given in zip(logits, (output.start_logits, output.end_logits), strict=True):
                given = given.float().cpu()
                check_finite(given, questions[batch].tolist(), lengths[batch].tolist())
                values[batch, : given.shape[1]] = given.numpy()
    return logits
