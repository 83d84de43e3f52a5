"""Save and reopen models of sentence-transformers, which is imported only by those who have such a model."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fineprune._transformers_output import quiet
from fineprune.checkpoint.sentence_files import CROSS, check_modules
from fineprune.errors import FinepruneError
from fineprune.pruning.probe import evaluating

_TEXTS = ("A short film.", "It is longer than it should be, and better than it looks.", "Is it?")


def sentence_kind(model: Any) -> str | None:
    """Return "SentenceTransformer" or "CrossEncoder" for such a model, None for one of another library.

    Raises:
        FinepruneError: it is another class of sentence-transformers, has other modules than fineprune keeps,
            or is run by another backend than torch.
    """
    library = sys.modules.get("sentence_transformers.base.model")
    if library is None or not isinstance(model, library.BaseModel):
        return None
    kind = str(model.model_type)
    check_modules([_name(module) for module in model], kind, f"model={type(model).__name__}")
    if not isinstance(model.transformers_model, PreTrainedModel):
        raise FinepruneError(
            f"model={type(model).__name__}: its transformer is a {type(model.transformers_model).__name__}; "
            'open it with backend="torch"'
        )
    return kind


def save_sentence_model(model: Any, folder: Path) -> None:
    """Write the folder of a sentence model, whose transformer writes itself."""
    model.save_pretrained(str(folder), create_model_card=False)


def reopen(model: Any, folder: Path) -> Any:
    """Open a folder as the class of a sentence model, on its device and in its type."""
    kind = getattr(sys.modules["sentence_transformers"], str(sentence_kind(model)))
    transformer = model.transformers_model
    with quiet():
        return kind(
            str(folder),
            device=str(transformer.device),
            local_files_only=True,
            model_kwargs={"dtype": transformer.dtype},
        )


def answers(model: Any) -> list[Tensor]:
    """Return the vectors of some texts, or the scores of some pairs, as float32."""
    with evaluating(model), torch.random.fork_rng(devices=[]):
        if sentence_kind(model) == CROSS:
            pairs = [(one, other) for one in _TEXTS for other in _TEXTS]
            found = model.predict(pairs, show_progress_bar=False, convert_to_tensor=True)
        else:
            found = model.encode(list(_TEXTS), show_progress_bar=False, convert_to_tensor=True)
    return [found.float()]


def _name(module: Any) -> str:
    """Return the name of a module's class, with its package if that is not sentence-transformers."""
    kind = type(module)
    ours = kind.__module__.partition(".")[0] == "sentence_transformers"
    return str(kind.__name__ if ours else f"{kind.__module__}.{kind.__name__}")
