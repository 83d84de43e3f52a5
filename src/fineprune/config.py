"""Every choice of a pruning run: checked when made, frozen, saved as JSON beside the model."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from fineprune._messages import near
from fineprune._validation import check_keys
from fineprune.errors import FinepruneError

Scope = Literal["local", "global"]
ScoreInit = Literal["zero", "magnitude"]
ScoreOptimizer = Literal["adam", "sgd", "adam_bf16"]

SCORE_OPTIMIZERS: tuple[ScoreOptimizer, ...] = ("adam", "sgd", "adam_bf16")


class Traits(NamedTuple):
    """What the paper's Table 1 allows for a method, and what it does when nothing is asked."""

    scopes: tuple[Scope, ...]  # the first is the default
    learns_scores: bool
    takes_penalty: bool
    score_lr: float | None
    holds_zeros: bool = False  # the zeros that are there stay; density and schedule are not used


METHODS: dict[str, Traits] = {
    "magnitude": Traits(("local", "global"), learns_scores=False, takes_penalty=False, score_lr=None),
    "l0": Traits(("global",), learns_scores=True, takes_penalty=True, score_lr=1e-1),
    "movement": Traits(("local", "global"), learns_scores=True, takes_penalty=False, score_lr=3e-2),
    "soft_movement": Traits(("global",), learns_scores=True, takes_penalty=True, score_lr=3e-2),
    "frozen": Traits(("local",), learns_scores=False, takes_penalty=False, score_lr=None, holds_zeros=True),
}


@dataclass(frozen=True)
class PruningConfig:
    """How to prune: the method, how much stays, and when.

    Raises `FinepruneError` for a value out of range, of a wrong type, or one that the method
    cannot use.
    """

    method: str = "movement"
    """"magnitude", "l0", "movement" or "soft_movement": a column of the paper's Table 1. "frozen" prunes
    nothing: the zeros that the model has stay zeros, and `density`, `warmup`, `cooldown` and `mask_interval`
    are not used."""

    density: float = 0.1
    """Share of the target weights that remain at the end, in (0, 1]. With a fixed `penalty` the
    density is an outcome, and this field is not used."""

    scope: Scope | None = None
    """"local" ranks matrix by matrix, "global" all matrices together. None: the method's own
    (local for magnitude and movement; l0 and soft_movement are global by definition; frozen ranks
    nothing)."""

    warmup: float | int = 0.1
    """Steps before pruning starts, t_i of Eq. 5. A float is a share of all steps, an int is steps."""

    cooldown: float | int = 0.3
    """Steps at the final density, t_f of Eq. 5. A float is a share of all steps, an int is steps."""

    score_lr: float | None = None
    """Learning rate of the scores. None: the method's own (movement, soft_movement 3e-2; l0 1e-1). It has
    the same scale under each `score_optimizer`."""

    score_optimizer: ScoreOptimizer = "adam"
    """"adam": the optimizer of the weights, which keeps 8 bytes a score if it is Adam or AdamW.
    "adam_bf16": Adam with both moments in bfloat16, 4 bytes. "sgd": momentum alone, 2 bytes, over the root
    mean square of each matrix's gradient."""

    score_init: ScoreInit | None = None
    """"zero": the paper's start, for runs of many thousand steps. "magnitude": scores start at
    |W| / mean|W|, which a short run needs. None: "magnitude"."""

    penalty: float | None = None
    """soft_movement and l0: None controls lambda such that `density` is reached; a number is the
    paper's fixed lambda."""

    targets: tuple[str, ...] | None = None
    """Patterns (`*` and `?`) of the linear layers to prune, matched against the end of their
    dotted names. None: all linear layers inside the repeated transformer blocks."""

    exclude: tuple[str, ...] | None = None
    """Patterns of layers to leave out of what `targets` found."""

    freeze_embeddings: bool = True
    """Do not train the embedding tables, as in the paper."""

    mask_interval: int = 1
    """Refresh masks every so many optimizer steps."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in METHODS:
            close = near(str(self.method), METHODS)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise FinepruneError(f"method={self.method!r}: {hint}allowed are {', '.join(METHODS)}")
        traits = METHODS[self.method]
        _number("density", self.density)
        if not 0 < self.density <= 1:
            raise FinepruneError(
                f"density={self.density!r}: the share of weights that remain must lie in (0, 1]; "
                "for 10 % write 0.1"
            )
        object.__setattr__(self, "density", float(self.density))
        self._choice("scope", traits.scopes)
        self._choice("score_init", ("zero", "magnitude"))
        self._choice("score_optimizer", SCORE_OPTIMIZERS, optional=False)
        _duration("warmup", self.warmup)
        _duration("cooldown", self.cooldown)
        shares = [value for value in (self.warmup, self.cooldown) if isinstance(value, float)]
        if sum(shares) >= 1:
            raise FinepruneError(
                f"warmup={self.warmup!r} and cooldown={self.cooldown!r}: together they must be "
                "less than 1 (all steps), so that steps remain to prune in"
            )
        for name in ("score_lr", "penalty"):
            if (value := getattr(self, name)) is not None:
                _number(name, value)
                if value < 0 or (value == 0 and name == "score_lr"):
                    raise FinepruneError(f"{name}={value!r}: must be greater than 0, or None for its default")
                object.__setattr__(self, name, float(value))
        if not traits.learns_scores:
            for name in ("score_lr", "score_init"):
                if getattr(self, name) is not None:
                    raise FinepruneError(
                        f"{name}={getattr(self, name)!r}: {self.method} learns no scores; leave {name} out"
                    )
            if self.score_optimizer != "adam":
                raise FinepruneError(
                    f"score_optimizer={self.score_optimizer!r}: {self.method} learns no scores; leave it out"
                )
        if self.penalty is not None and not traits.takes_penalty:
            takers = ", ".join(name for name, entry in METHODS.items() if entry.takes_penalty)
            raise FinepruneError(
                f"penalty={self.penalty!r}: {self.method} has no penalty; only {takers} have. Leave it out"
            )
        object.__setattr__(self, "targets", _patterns("targets", self.targets))
        object.__setattr__(self, "exclude", _patterns("exclude", self.exclude))
        if not isinstance(self.freeze_embeddings, bool):
            raise FinepruneError(f"freeze_embeddings={self.freeze_embeddings!r}: must be true or false")
        if isinstance(self.mask_interval, bool) or not isinstance(self.mask_interval, int):
            raise FinepruneError(f"mask_interval={self.mask_interval!r}: must be a whole number of steps")
        if self.mask_interval < 1:
            raise FinepruneError(f"mask_interval={self.mask_interval!r}: must be at least 1 step")

    def _choice(self, name: str, allowed: tuple[str, ...], optional: bool = True) -> None:
        value = getattr(self, name)
        if not (optional and value is None) and value not in allowed:
            raise FinepruneError(
                f"{name}={value!r}: {self.method} allows {' or '.join(repr(entry) for entry in allowed)}"
            )

    @property
    def traits(self) -> Traits:
        """The method's row of `METHODS`."""
        return METHODS[self.method]

    @property
    def controlled(self) -> bool:
        """Whether the run ends at `density`; else a fixed lambda decides where it ends."""
        return self.penalty is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config of a mapping; an unknown key is an error that names the nearest one."""
        check_keys(values, (entry.name for entry in fields(cls)), "pruning")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the config as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FinepruneError(f"{path}: not a pruning config in JSON ({error})") from error
        return cls.from_dict(values)


@dataclass(frozen=True)
class Distillation:
    """How much a student learns from its teacher (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531).

    The loss is alpha · T² · KL(teacher ‖ student) + (1 − alpha) · task loss, both sides softened by
    the temperature T. The defaults are those of the paper's runs with distillation (its Table 3).
    """

    alpha: float = 0.9
    """Share of the teacher in the loss, in [0, 1]; the labels have the rest."""

    temperature: float = 2.0
    """What the logits are divided by. Higher: more of what the teacher thinks of the wrong answers."""

    def __post_init__(self) -> None:
        for name in ("alpha", "temperature"):
            _number(name, getattr(self, name))
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 <= self.alpha <= 1:
            raise FinepruneError(
                f"alpha={self.alpha!r}: the teacher's share of the loss must lie in [0, 1], for example 0.9"
            )
        if self.temperature <= 0:
            raise FinepruneError(
                f"temperature={self.temperature!r}: must be greater than 0; 2 is usual, 1 softens nothing"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings of a mapping; an unknown key is an error that names the nearest one."""
        check_keys(values, (entry.name for entry in fields(cls)), "distillation")
        return cls(**values)


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FinepruneError(f"{name}={value!r}: must be a finite number")


def _duration(name: str, value: Any) -> None:
    _number(name, value)
    if value < 0 or (isinstance(value, float) and value >= 1):
        raise FinepruneError(
            f"{name}={value!r}: must be a share of the steps (a float in [0, 1)) or steps (an int)"
        )


def _patterns(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    patterns = (value,) if isinstance(value, str) else value
    if (
        not isinstance(patterns, (list, tuple))
        or not patterns
        or not all(isinstance(pattern, str) and pattern for pattern in patterns)
    ):
        raise FinepruneError(
            f"{name}={value!r}: must be a pattern or a list of patterns; None for the default"
        )
    return tuple(patterns)
