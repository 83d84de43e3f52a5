"""Take the answers of the dense model as labels, where the data have none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction

from fineprune._transformers_output import quiet
from fineprune.errors import FinepruneError
from fineprune.pruning.probe import evaluating
from fineprune.tasks.data import Evaluation
from fineprune.tasks.embeddings.sentence import read_sentence
from fineprune.tasks.kinds import kind_of
from fineprune.tasks.opening import open_trained

_BATCH = 64


def with_answers(evaluation: Evaluation, source: str, collate: Callable[[list[Any]], Any]) -> Evaluation:
    """Return validation data whose labels are the answers of a model, and the scores of that model.

    Args:
        evaluation: the data, without labels.
        source: the dense model: a folder, or a name on the hub.
        collate: makes a padded batch of rows.

    Raises:
        FinepruneError: there is no such model, or it answers in no known form.
    """
    with quiet():
        model = open_trained(source, hub=True).model.float()
    if kind_of(model) is None:  # read_sentence says how to save one that answers with embeddings
        read_sentence(source)
        raise FinepruneError(f"{source}: a {type(model).__name__} has no embeddings to teach")
    rows = _labeled(evaluation.rows, model, collate)
    scores = dict(_scored(rows, evaluation.compute_metrics))
    more = {}
    for name, further in evaluation.more.items():
        more[name] = further._replace(rows=_labeled(further.rows, model, collate))
        found = _scored(more[name].rows, further.compute_metrics)
        scores |= {f"{name}_{metric}": value for metric, value in found.items()}
    return Evaluation(rows, evaluation.compute_metrics, more, scores)


def _labeled(rows: Dataset, model: Any, collate: Callable[[list[Any]], Any]) -> Dataset:
    found = []
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            batch = collate([rows[at] for at in range(start, min(start + _BATCH, len(rows)))])
            found += model(**batch)["logits"].tolist()
    return Dataset.from_dict(rows.to_dict() | {"labels": found})


def _scored(rows: Dataset, score: Callable[[EvalPrediction], dict[str, float]]) -> dict[str, float]:
    labels = np.array(rows["labels"], np.float32)
    return score(EvalPrediction(predictions=labels, label_ids=labels))
