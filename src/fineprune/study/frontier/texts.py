"""Read the validation data of a run one text at a time, as they are served, and score answers to them."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fineprune.checkpoint.loading import OpenedModel
from fineprune.study.frontier.runtimes import Answer, Inputs
from fineprune.tasks.kinds import data_for
from fineprune.training.run.data_files import load_recipe
from fineprune.training.run.dense_answers import with_answers

TIMED = 50
"""Validation examples whose texts are timed."""

_LOGITS = ("logits", "start_logits", "end_logits")


class Texts(NamedTuple):
    """The validation data as one model reads them, at their true lengths."""

    inputs: list[Inputs]
    timed: list[Inputs]
    score: Callable[[dict[str, list[Any]]], float]
    """From the logits of each text to the main metric."""
    scored: int
    available: int
    examples: int
    """Examples that `timed` is of: a long one may be read in several windows."""


def read_texts(run: Path, opened: OpenedModel, count: int) -> Texts:
    """Read at most `count` validation examples of a run's recipe, evenly spaced over the data."""
    recipe, _ = load_recipe(run)
    every = data_for(opened.model, recipe.task)
    data, timed = few(every, count), few(every, min(TIMED, count))
    tokenizer, length = opened.tokenizer, recipe.training.max_length
    evaluation = data.evaluation(tokenizer, length)
    if recipe.task.own_teacher and recipe.distillation is not None:  # whose answers are the labels
        teacher = str(recipe.distillation.teacher)
        evaluation = with_answers(replace(evaluation, more={}), teacher, data.collator(tokenizer))
    collate = data.collator(tokenizer)

    def inputs_of(rows: Any) -> list[Inputs]:
        names = [name for name in rows.column_names if name in tokenizer.model_input_names]
        batches = (collate([row]) for row in rows.select_columns(names))
        return [{name: batch[name] for name in names} for batch in batches]

    def score(logits: dict[str, list[Any]]) -> float:
        from transformers import EvalPrediction

        rows = evaluation.rows
        arrays = tuple(map(_padded, logits.values()))
        labels: Any = _padded(rows["labels"]) if "labels" in rows.column_names else None
        given = EvalPrediction(arrays if len(arrays) > 1 else arrays[0], labels)
        return float(evaluation.compute_metrics(given)[data.metric])

    scored, available, examples = (each.sizes()["validation"] for each in (data, every, timed))
    timed_rows = timed.evaluation(tokenizer, length).rows
    return Texts(inputs_of(evaluation.rows), inputs_of(timed_rows), score, scored, available, examples)


def few(data: Any, count: int) -> Any:
    """Return the data of a task with at most `count` validation examples, evenly spaced."""
    validation = data.validation
    number = len(validation)
    if number <= count:
        return data
    places = [index * number // count for index in range(count)]
    if isinstance(validation, list):
        return replace(data, validation=[validation[place] for place in places])
    columns = {
        column.name: [values[place] for place in places]
        for column in fields(validation)
        if isinstance(values := getattr(validation, column.name), list)
    }
    return replace(data, validation=replace(validation, **columns))


def answers_of(answer: Answer, inputs: list[Inputs]) -> dict[str, list[Any]]:
    """Return the logits of each text by name; copies, since a runtime may use its memory again."""
    found: dict[str, list[Any]] = {}
    for text in inputs:
        outputs = answer(text)
        for name in _LOGITS:
            if name in outputs:
                found.setdefault(name, []).append(np.array(outputs[name][0], dtype=np.float32))
    return found


def _padded(rows: Iterable[Any]) -> Any:
    """Return rows of one rank as one array, padded with -100 as transformers' Trainer does it."""
    arrays = list(map(np.asarray, rows))
    longest = np.max([array.shape for array in arrays], axis=0)
    result = np.full((len(arrays), *longest), -100, dtype=np.result_type(*arrays))
    for index, array in enumerate(arrays):
        inside: Any = (index, *map(slice, array.shape))
        result[inside] = array
    return result
