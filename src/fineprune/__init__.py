"""Fine-tune a pre-trained transformer and come out with 3-15 % of its weights."""

import importlib
from typing import TYPE_CHECKING, Any

from fineprune import _transformers_import
from fineprune._version import __version__ as __version__
from fineprune.config import Distillation, PruningConfig
from fineprune.errors import FinepruneError, FinepruneWarning

if TYPE_CHECKING:
    from fineprune.checkpoint.compact import Compact, save_compact
    from fineprune.checkpoint.delta import save_delta
    from fineprune.checkpoint.export import export_model
    from fineprune.checkpoint.legacy_import import import_checkpoint
    from fineprune.checkpoint.loading import load
    from fineprune.checkpoint.vocabulary import shrink_vocabulary
    from fineprune.inference.accelerate import accelerate
    from fineprune.pruning.calibration.calibrate import calibrate
    from fineprune.pruning.calibration.calibrated import Calibrated
    from fineprune.pruning.costs import Costs, costs
    from fineprune.pruning.distributed.gathering import gather_state_dict
    from fineprune.pruning.finalizing import finalize
    from fineprune.pruning.preparing import prepare
    from fineprune.pruning.pruner import Pruner
    from fineprune.pruning.shrink import Shrunk, shrink
    from fineprune.pruning.summary import Summary, summary
    from fineprune.training.host.trainer import PruningTrainer, pruning_trainer

__all__ = [
    "Calibrated",
    "Compact",
    "Costs",
    "Distillation",
    "FinepruneError",
    "FinepruneWarning",
    "Pruner",
    "PruningConfig",
    "PruningTrainer",
    "Shrunk",
    "Summary",
    "accelerate",
    "calibrate",
    "costs",
    "export_model",
    "finalize",
    "gather_state_dict",
    "import_checkpoint",
    "load",
    "prepare",
    "pruning_trainer",
    "save_compact",
    "save_delta",
    "shrink",
    "shrink_vocabulary",
    "summary",
]

# Imported when first used: torch takes seconds to import, transformers' Trainer more.
_LAZY = {
    "Calibrated": "fineprune.pruning.calibration.calibrated",
    "Compact": "fineprune.checkpoint.compact",
    "Costs": "fineprune.pruning.costs",
    "Pruner": "fineprune.pruning.pruner",
    "PruningTrainer": "fineprune.training.host.trainer",
    "Shrunk": "fineprune.pruning.shrink",
    "Summary": "fineprune.pruning.summary",
    "accelerate": "fineprune.inference.accelerate",
    "calibrate": "fineprune.pruning.calibration.calibrate",
    "costs": "fineprune.pruning.costs",
    "export_model": "fineprune.checkpoint.export",
    "finalize": "fineprune.pruning.finalizing",
    "gather_state_dict": "fineprune.pruning.distributed.gathering",
    "import_checkpoint": "fineprune.checkpoint.legacy_import",
    "load": "fineprune.checkpoint.loading",
    "prepare": "fineprune.pruning.preparing",
    "pruning_trainer": "fineprune.training.host.trainer",
    "save_compact": "fineprune.checkpoint.compact",
    "save_delta": "fineprune.checkpoint.delta",
    "shrink": "fineprune.pruning.shrink",
    "shrink_vocabulary": "fineprune.checkpoint.vocabulary",
    "summary": "fineprune.pruning.summary",
}

_transformers_import.hook()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fineprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
