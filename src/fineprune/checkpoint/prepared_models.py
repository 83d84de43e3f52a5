"""Refuse `save_pretrained` of a prepared model: its folder would open with random weights.

The keys of its pruned weights are not those of its class, so `from_pretrained` takes none of them, and only
warns. Checkpoints of engines that spread a model over processes are not opened so; they stay prepared.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from fineprune.errors import FinepruneError
from fineprune.pruning.finalizing import masked_modules

_KEY = ".parametrizations.weight."

_allowed = contextvars.ContextVar("prepared_models_allowed", default=False)


@contextlib.contextmanager
def engine_checkpoint() -> Iterator[None]:
    """Let the block save prepared models, for a checkpoint that only the training itself reads."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


def refuse_saving() -> None:
    """Let `save_pretrained` of every model of transformers raise `FinepruneError` while it is prepared."""
    save: Any = PreTrainedModel.save_pretrained

    @functools.wraps(save)
    def save_pretrained(
        self: Any,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: Mapping[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not _allowed.get() and _is_prepared(self, state_dict):
            raise FinepruneError(
                f"{save_directory}: this model is still being pruned, and would be written with masks beside "
                "the weights, which no model opens: call fineprune.finalize(model) first; to keep it as it "
                "is, save a finalized copy by fineprune.save_compact(model, folder), or by save_model of a "
                "PruningTrainer; to go on later, save model.state_dict() and pruner.state_dict()"
            )
        return save(self, save_directory, is_main_process, state_dict, *args, **kwargs)

    PreTrainedModel.save_pretrained = save_pretrained


def _is_prepared(model: Any, state: Mapping[str, Any] | None) -> bool:
    """Return whether what would be written is of a prepared model; of adapters only theirs is."""
    if getattr(model, "_hf_peft_config_loaded", False):
        return False
    return any(True for _ in masked_modules(model)) if state is None else any(_KEY in key for key in state)
