"""Open a trained model such that it answers in the form of its kind of task."""

from pathlib import Path
from typing import Any

from fineprune.checkpoint import loading
from fineprune.tasks.embeddings.prediction import answer_in_place
from fineprune.tasks.embeddings.sentence import is_sentence_folder
from fineprune.tasks.kinds import kind_of


def open_trained(source: str | Path, **options: Any) -> loading.OpenedModel:
    """Open a model as `open_model` does; that of a Sentence Transformers folder answers with embeddings.

    Raises:
        FinepruneError: as `open_model`, and for modules of sentence-transformers that are not known.
    """
    model, _, place = opened = loading.open_model(source, **options)
    if kind_of(model) is None and is_sentence_folder(place):
        answer_in_place(model, place)
    return opened
