"""How far a pruning has come, noted on the model, so that one that was cut short can be reported."""

import warnings
import weakref
from typing import Any

from torch import nn

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneWarning
from fineprune.pruning.distributed import agreement
from fineprune.pruning.schedule import Schedule
from fineprune.structure import parts_of

PROGRESS = "_fineprune_progress"
"""The attribute of a prepared model that holds its `Progress`."""

_reported: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # finalized models whose density was reported


class Progress:
    """The steps that a pruning has done, of those planned. Copies of the model share it."""

    def __init__(self, config: PruningConfig, schedule: Schedule) -> None:
        self.config, self.schedule = config, schedule
        self.steps_done = 0
        self.reported = False

    def __deepcopy__(self, memo: Any) -> "Progress":
        return self

    def report(self, density: float) -> None:
        """Warn, once, if this density is not the one that the pruning was planned to end at."""
        config, total = self.config, self.schedule.total
        asked = _asked(config)
        if self.reported or config.traits.holds_zeros:
            return
        if self.schedule.at_final(self.steps_done):
            # Whole units do not divide evenly: a selection of them is as near as it can be.
            if asked is None or _near(density, asked) or config.structure != "element":
                return
        elif asked is not None and abs(density - asked) <= 1e-3 * asked:
            return
        self.reported = True
        never = " (pruner.step() was never called)" if self.steps_done == 0 else ""
        instead = "" if asked is None else f" instead of {asked:g}"
        warn_first(
            f"pruning is at step {self.steps_done} of {total}{never}: the density is "
            f"{_digits(density, asked)}{instead}; train for all steps, or plan as many as the training takes"
        )


def progress_of(model: nn.Module) -> Progress | None:
    """Return the progress of a prepared model, or of the one inside it."""
    found = (vars(module).get(PROGRESS) for module in model.modules())
    return next((entry for entry in found if entry is not None), None)


def end(model: nn.Module, density: float) -> None:
    """Report a model that is about to be finalized."""
    progress = progress_of(model)
    if progress is not None:
        progress.report(density)
        if progress.reported:
            _reported.add(model)


def compare(model: nn.Module, config: PruningConfig | None, density: float) -> None:
    """Warn if an ordinary model has another density than the config that is saved with it asks for.

    The density is that of all linear layers of the blocks, which a config may not have pruned, as where its
    structure names parts or levels.
    """
    if config is None or config.targets is not None or config.exclude is not None:
        return
    asked = (
        None if config.traits.holds_zeros or isinstance(config.structure, (dict, list)) else _asked(config)
    )
    if asked is not None and model not in _reported and not _near(density, asked):
        _reported.add(model)
        warn_first(
            f"the density is {density:.3g}, and config says {config.density:g}: pass the config that the "
            "model was pruned with; if it is this one, its training was cut short"
        )


def warn_first(text: str) -> None:
    """Warn in the first of several processes, which speaks for all."""
    if agreement.is_first():
        warnings.warn(text, FinepruneWarning, stacklevel=3)


def _digits(density: float, asked: float | None) -> str:
    """Return a density with three digits, or as many as tell it from the one that was asked for."""
    texts = [f"{density:.{digits}g}" for digits in range(3, 8)]
    return next((text for text in texts if asked is None or text != f"{asked:g}"), texts[-1])


def _asked(config: PruningConfig) -> float | None:
    """Return the share of weights that a config asks for; None where something else decides it."""
    parts = parts_of(config.structure).values()
    by_weights = config.budget == "parameters" and all(part.density is None for part in parts)
    return config.density if config.controlled and by_weights else None


def _near(density: float, asked: float) -> bool:
    return abs(density - asked) <= max(0.1 * asked, 0.01)  # units of matrices and gates do not divide evenly
