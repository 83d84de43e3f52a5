"""Score embeddings: how near they are to the dense model's, and what they are worth by themselves."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from transformers import EvalPrediction

    from fineprune.tasks.embeddings.texts import Pairs, Retrieval

NEIGHBORS = 10
_BEST = 10  # texts that a search returns

Score = Callable[["EvalPrediction"], dict[str, float]]
Vectors = NDArray[np.float32]


def closeness(evaluation: "EvalPrediction") -> dict[str, float]:
    """Return how near embeddings are to the dense model's, which are the labels.

    `cosine` is the mean cosine of both; `spearman` the rank correlation of the similarities of all pairs of
    texts; `neighbors` the share of each text's ten nearest others by the dense model that are among the ten
    nearest by this one.
    """
    from scipy.stats import spearmanr

    if not np.isfinite(evaluation.predictions).all():
        raise FinepruneError(
            "the model's embeddings contain NaN or infinity: training diverged; lower the learning rate"
        )
    ours, dense = unit(evaluation.predictions), unit(evaluation.label_ids)
    similar, wanted = ours @ ours.T, dense @ dense.T
    pairs = np.triu_indices(len(ours), 1)
    count = min(NEIGHBORS, len(ours) - 1)
    shared = [
        len(set(own) & set(others)) / count
        for own, others in zip(_nearest(similar, count), _nearest(wanted, count), strict=True)
    ]
    told = np.ptp(similar[pairs]) and np.ptp(wanted[pairs])
    correlation = float(spearmanr(similar[pairs], wanted[pairs])[0]) if told else 0.0
    return {
        "spearman": correlation,
        "cosine": float((ours * dense).sum(1).mean()),
        "neighbors": float(np.mean(shared)),
    }


def of_pairs(pairs: "Pairs", places: Sequence[int]) -> Score:
    """Return the scoring of pairs: the correlation of cosines with the scores that people gave.

    Args:
        pairs: the pairs.
        places: the row of the embedding of each first text, then of each second one.
    """
    from scipy.stats import pearsonr, spearmanr

    def score(evaluation: "EvalPrediction") -> dict[str, float]:
        vectors = unit(evaluation.predictions)[list(places)]
        half = len(pairs.scores)
        cosines = (vectors[:half] * vectors[half:]).sum(1)
        if not np.ptp(cosines):
            return {"spearman": 0.0, "pearson": 0.0}
        return {
            "spearman": float(spearmanr(cosines, pairs.scores)[0]),
            "pearson": float(pearsonr(cosines, pairs.scores)[0]),
        }

    return score


def of_retrieval(retrieval: "Retrieval", places: Sequence[int]) -> Score:
    """Return the scoring of a search: where the right text comes for each query.

    Args:
        retrieval: the queries and texts.
        places: the row of the embedding of each query, then of each text.
    """

    def score(evaluation: "EvalPrediction") -> dict[str, float]:
        vectors = unit(evaluation.predictions)[list(places)]
        queries, texts = vectors[: len(retrieval.queries)], vectors[len(retrieval.queries) :]
        ranks = np.concatenate(
            [
                # a tie, or nan, counts against the model: one that gives all texts the same vector finds none
                (~(block @ texts.T < (block * texts[right]).sum(1, keepdims=True) - 1e-6)).sum(1)
                for block, right in _blocks(queries, np.array(retrieval.right))
            ]
        )
        found = ranks <= _BEST
        return {
            "recall_at_1": float((ranks <= 1).mean()),
            "recall_at_10": float(found.mean()),
            "mrr_at_10": float((found / ranks).mean()),
            "ndcg_at_10": float((found / np.log2(1 + ranks)).mean()),
        }

    return score


def unit(vectors: Any) -> Vectors:
    """Return vectors, (rows, features), divided by their length."""
    values = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    shortened: Vectors = values / np.maximum(lengths, np.float32(1e-12))
    return shortened


def _nearest(similar: Vectors, count: int) -> NDArray[np.intp]:
    """Return the `count` most similar others of each row, in no order."""
    others = similar.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argpartition(-others, count - 1, axis=1)[:, :count]


def _blocks(queries: Vectors, right: NDArray[np.intp], rows: int = 1024) -> Any:
    for start in range(0, len(queries), rows):
        yield queries[start : start + rows], right[start : start + rows]
