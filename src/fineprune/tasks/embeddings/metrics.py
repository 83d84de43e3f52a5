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
    nearest by this one; of fewer than 31 texts a third of the others, since ten of few are nearly all.
    """
    from scipy.stats import spearmanr

    if not np.isfinite(evaluation.predictions).all():
        raise FinepruneError(
            "the model's embeddings contain NaN or infinity: training diverged; lower the learning rate"
        )
    ours, dense = unit(evaluation.predictions), unit(evaluation.label_ids)
    similar, wanted = ours @ ours.T, dense @ dense.T
    pairs = np.triu_indices(len(ours), 1)
    count = max(1, min(NEIGHBORS, (len(ours) - 1) // 3))
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
    """Return the scoring of a search: where the right texts come for each query.

    With several right texts the recall is the share of them that is found, the reciprocal rank is of the
    first one found, and the gain is divided by that of the best order, as sentence-transformers'
    InformationRetrievalEvaluator has it.

    Args:
        retrieval: the queries and texts.
        places: the row of the embedding of each query, then of each text.
    """

    def score(evaluation: "EvalPrediction") -> dict[str, float]:
        vectors = unit(evaluation.predictions)[list(places)]
        queries, texts = vectors[: len(retrieval.queries)], vectors[len(retrieval.queries) :]
        owners, ranks = _ranks(queries, texts, retrieval.right)
        found = ranks <= _BEST
        counts = np.bincount(owners)
        firsts = np.cumsum(counts) - counts
        ideal = np.cumsum(1 / np.log2(1 + np.arange(1, _BEST + 1)))[np.minimum(counts, _BEST) - 1]
        return {
            "recall_at_1": float((np.bincount(owners, ranks <= 1) / counts).mean()),
            "recall_at_10": float((np.bincount(owners, found) / counts).mean()),
            "mrr_at_10": float((found / ranks)[firsts].mean()),
            "ndcg_at_10": float((np.bincount(owners, found / np.log2(1 + ranks)) / ideal).mean()),
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


def _ranks(
    queries: Vectors, texts: Vectors, right: Sequence[Sequence[int]], rows: int = 1024
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the query of each right text, and that text's rank, query by query, the first one first."""
    owners = np.repeat(np.arange(len(right)), [len(places) for places in right])
    wanted = np.concatenate([np.asarray(places, np.intp) for places in right])
    before = []
    for start in range(0, len(owners), rows):
        owner = owners[start : start + rows]
        block = queries[owner]
        own = (block * texts[wanted[start : start + rows]]).sum(1, keepdims=True)
        # a tie, or nan, counts against the model: one that gives all texts the same vector finds none
        wrong = ~(block @ texts.T < own - 1e-6)
        for row, query in enumerate(owner):
            wrong[row, right[query]] = False
        before.append(wrong.sum(1))
    ahead = np.concatenate(before)
    order = np.lexsort((ahead, owners))
    firsts = np.flatnonzero(np.diff(owners, prepend=-1))
    place = np.arange(len(owners)) - firsts[owners]
    return owners, ahead[order] + place + 1
