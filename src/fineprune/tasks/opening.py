"""Open a trained model such that it answers in the form of its kind of task."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune._engine_errors import engine_errors
from fineprune.checkpoint import loading
from fineprune.tasks.embeddings.prediction import answer_in_place
from fineprune.tasks.embeddings.sentence import is_sentence_folder, local_folder
from fineprune.tasks.kinds import kind_of
from fineprune_runtime.cross_encoders import ABOUT, is_cross_encoder
from fineprune_runtime.modules import MODULES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_trained(source: str | Path, **options: Any) -> loading.OpenedModel:
    """Open a model as `open_model` does, such that it reads and answers as sentence-transformers would.

    A folder of a SentenceTransformer answers with embeddings; the tokenizer of a CrossEncoder has its length.

    Raises:
        FinepruneError: as `open_model`, and for modules and settings of sentence-transformers that are not
            known.
    """
    model, tokenizer, place = opened = loading.open_model(source, **options)
    if kind_of(model) is None and is_sentence_folder(place):
        answer_in_place(model, place)
    elif tokenizer is not None and is_cross_encoder(vars(model.config), {}):
        _read_as_cross_encoder(tokenizer, local_folder(place))
    return opened


def _read_as_cross_encoder(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Let a tokenizer cut and lowercase as the settings beside it say."""
    from fineprune_runtime.folder import Folder  # these import numpy
    from fineprune_runtime.sentence_settings import cross_encoder_settings
    from fineprune_runtime.tokenizer_file import lowercase

    if not any(os.path.isfile(folder / name) for name in (ABOUT, MODULES)):
        return  # older versions have no settings beside the model
    with engine_errors():
        settings = cross_encoder_settings(Folder(folder))
    if settings.length is not None:
        tokenizer.model_max_length = settings.length
    if settings.lower and (backend := getattr(tokenizer, "_tokenizer", None)) is not None:
        lowercase(backend)
