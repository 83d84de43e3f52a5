"""Every choice of a pruning run: checked when made, frozen, saved as JSON beside the model."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from fineprune._distillation import Distillation as Distillation
from fineprune._files import write_json
from fineprune._messages import choose
from fineprune._methods import METHODS as METHODS
from fineprune._methods import RENAMED as RENAMED
from fineprune._methods import Scope as Scope
from fineprune._methods import Traits as Traits
from fineprune._methods import method_class as method_class
from fineprune._methods import method_name as method_name
from fineprune._validation import check_keys, check_number
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.structure import Level, canonical, check_structure, levels_of, plain
from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import read_json

ScoreInit = Literal["zero", "magnitude"]
ScoreOptimizer = Literal["adam", "sgd", "adam_bf16"]
Budget = Literal["parameters", "flops", "latency"]

SCORE_OPTIMIZERS: tuple[ScoreOptimizer, ...] = ("adam", "sgd", "adam_bf16")


@dataclass(frozen=True)
class PruningConfig:
    """How to prune: the method, how much stays, and when.

    Raises `FinepruneError` for a value out of range, of a wrong type, or one that the method
    cannot use.
    """

    method: str = "movement"
    """A name of `METHODS`: "magnitude", "l0", "movement" or "soft_movement", the columns of the paper's
    Table 1, or another. "keep_zeros" prunes nothing: the zeros that the model has stay zeros, and `density`,
    `warmup`, `cooldown` and `mask_interval` are not used."""

    density: float = 0.1
    """Share of the target weights that remain at the end, in (0, 1]. With a fixed `penalty` of
    soft_movement or l0 the density is an outcome, and this field is not used."""

    initial_density: float = 1.0
    """Density of the first cut, at the end of the warm-up: v_i of Eq. 5. Below 1 the run begins with one
    large cut, and more steps remain to recover."""

    scope: Scope | None = None
    """"local" ranks matrix by matrix, "global" all matrices together; "type" gives each kind of matrix
    (query, key, …) the density, and each of its matrices a share by the mean sigmoid of the scores. None: the
    method's own (local for magnitude and movement; l0 and soft_movement are global by definition;
    keep_zeros ranks nothing)."""

    structure: Any = "element"
    """What stays or goes together: "element", "row", "column" or a block (rows, columns), in every target
    matrix; or by part, {"attention": …, "feed_forward": …}, where "head" and "neuron" (and "attention" and
    "feed_forward", which are all of it) leave a model that `shrink` makes smaller; a "value_dim" of the
    attention is a row of V with what reads it, one dim of a head, a "query_dim" a row of K with its row of Q;
    ["query_dim", "value_dim"] takes both. A part that is not named stays whole.
    {"unit": …, "density": …} gives a part its own density and ranking. Two levels are a list:
    [{"attention": "head", "feed_forward": "neuron", "density": 0.5}, "element"] keeps half of the heads and
    neurons, and of their weights as many as `density` asks for."""

    budget: Budget = "parameters"
    """What `density` is a share of: the weights; "flops", the multiply-adds of a text of `budget_length`
    tokens, which count the attention product too; or "latency", the time of the dense model."""

    budget_length: int = 128
    """Tokens of the text that `budget` counts or times."""

    latency_table: str | None = None
    """The file of times that `budget="latency"` reads: `fineprune bench DIR --table` writes it."""

    round_to: int = 1
    """The neurons of each layer are rounded to a multiple of this, which hardware may like: 8, 16, 32."""

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
    |W| / mean|W| (zeros are not in the mean), which a short run needs. None: "magnitude"."""

    penalty: float | None = None
    """soft_movement and l0: None controls lambda such that `density` is reached; a number is the
    paper's fixed lambda. movement: a number adds soft movement's penalty, with that lambda, to the loss, and
    `density` is kept all the same; None adds none."""

    targets: tuple[str, ...] | None = None
    """Patterns (`*` and `?`) of the linear layers to prune, matched against the end of their
    dotted names. None: all linear layers inside the repeated transformer blocks."""

    exclude: tuple[str, ...] | None = None
    """Patterns of layers to leave out of what `targets` found."""

    freeze_embeddings: bool = True
    """Do not train the embedding tables, as in the paper."""

    mask_interval: int = None  # type: ignore[assignment]  # __post_init__ fills it in
    """Refresh the masks every N optimizer steps. None: the method's own (1, where it does not say more)."""

    fix_masks: bool = False
    """Keep the masks that reach the final density to the end, so that in the cool-down only weights move."""

    options: Any = None
    """Settings that the method alone has, a mapping; None: its defaults. Becomes the method's own frozen
    dataclass `Options`."""

    def __post_init__(self) -> None:
        name = method_name(self.method)
        if name != self.method:
            warnings.warn(f"method={self.method!r} is called {name!r} now", FinepruneWarning, stacklevel=3)
        object.__setattr__(self, "method", choose(name, list(METHODS), "method"))
        object.__setattr__(self, "structure", canonical(self.structure))
        given: int | None = self.mask_interval
        object.__setattr__(self, "mask_interval", self.traits.mask_interval if given is None else given)
        for check in _CHECKS:
            check(self)
        for name in ("density", "initial_density", "score_lr", "penalty"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("targets", "exclude"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        object.__setattr__(self, "options", _options(self))

    @property
    def traits(self) -> Traits:
        """The method's row of `METHODS`."""
        return METHODS[self.method]

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of `structure`. An outer one without a density keeps the square root of `density`, so
        that both levels keep the same share of what they choose among.
        """
        *outer, inner = levels_of(self.structure)
        derived = {"density": self.density**0.5, "derived": True}
        return *(level if level.shares else level._replace(**derived) for level in outer), inner

    @property
    def controlled(self) -> bool:
        """Whether the run ends at `density`; else a fixed lambda decides where it ends."""
        return self.penalty is None or not self.traits.penalty_decides

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON and YAML can hold."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return values | {"structure": plain(levels_of(self.structure))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make the config of a mapping; an unknown key is an error that names the nearest one."""
        check_keys(values, (entry.name for entry in fields(cls)), "pruning")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the config as JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        try:
            values = read_json(path)
        except (OSError, EngineError) as error:
            raise FinepruneError(f"{path}: not a pruning config in JSON ({error})") from error
        return cls.from_dict(values)


def _check_density(config: PruningConfig) -> None:
    check_number("density", config.density)
    if not 0 < config.density <= 1:
        raise FinepruneError(
            f"density={config.density!r}: the share of weights that remain must lie in (0, 1]; "
            "for 10 % write 0.1"
        )


def _check_initial_density(config: PruningConfig) -> None:
    check_number("initial_density", config.initial_density)
    if config.initial_density == 1:
        return
    if config.traits.holds_zeros or not config.controlled:
        reason = "a fixed penalty" if config.traits.penalty_decides else f"method={config.method!r}"
        raise FinepruneError(
            f"initial_density={config.initial_density!r}: {reason} follows no schedule of the density; leave "
            "initial_density out"
        )
    if not config.density <= config.initial_density <= 1:
        raise FinepruneError(
            f"initial_density={config.initial_density!r}: must lie between density "
            f"({config.density!r}) and 1; 0.3 cuts to 30 % at once"
        )


def _check_choices(config: PruningConfig) -> None:
    choices: dict[str, tuple[Any, ...]] = {
        "scope": (None, *config.traits.scopes),
        "score_init": (None, "zero", "magnitude"),
        "score_optimizer": SCORE_OPTIMIZERS,
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            listed = " or ".join(repr(entry) for entry in allowed if entry is not None)
            raise FinepruneError(f"{name}={getattr(config, name)!r}: {config.method} allows {listed}")


def _check_schedule(config: PruningConfig) -> None:
    for name in ("warmup", "cooldown"):
        value = getattr(config, name)
        check_number(name, value)
        if value < 0 or (isinstance(value, float) and value >= 1):
            raise FinepruneError(
                f"{name}={value!r}: must be a share of the steps (a float in [0, 1)) or steps (an int)"
            )
    shares = [value for value in (config.warmup, config.cooldown) if isinstance(value, float)]
    if sum(shares) >= 1:
        raise FinepruneError(
            f"warmup={config.warmup!r} and cooldown={config.cooldown!r}: together they must be "
            "less than 1 (all steps), so that steps remain to prune in"
        )


def _check_elements(config: PruningConfig) -> None:
    if config.traits.elements_only and config.structure != "element":
        raise FinepruneError(
            f"structure={config.structure!r}: {config.method} prunes elements only; give structure=element, "
            "or choose another method"
        )


def _check_rates(config: PruningConfig) -> None:
    for name in ("score_lr", "penalty"):
        if (value := getattr(config, name)) is not None:
            check_number(name, value)
            if value < 0 or (value == 0 and name == "score_lr"):
                raise FinepruneError(f"{name}={value!r}: must be greater than 0, or None for its default")


def _check_scores(config: PruningConfig) -> None:
    if config.traits.learns_scores:
        return
    for name, default in (("score_lr", None), ("score_init", None), ("score_optimizer", "adam")):
        if getattr(config, name) != default:
            raise FinepruneError(
                f"{name}={getattr(config, name)!r}: {config.method} learns no scores; leave {name} out"
            )


def _check_penalty(config: PruningConfig) -> None:
    if config.penalty is not None and not config.traits.takes_penalty:
        takers = ", ".join(name for name, entry in METHODS.items() if entry.takes_penalty)
        raise FinepruneError(
            f"penalty={config.penalty!r}: {config.method} has no penalty; only {takers} have. Leave it out"
        )


def _check_rest(config: PruningConfig) -> None:
    for name in ("freeze_embeddings", "fix_masks"):
        if not isinstance(getattr(config, name), bool):
            raise FinepruneError(f"{name}={getattr(config, name)!r}: must be true or false")
    if config.fix_masks and not config.traits.can_fix_masks:
        raise FinepruneError(
            f"fix_masks=true: the gates of {config.method} go on closing with their scores, below the "
            "density; leave it out"
        )
    if isinstance(config.mask_interval, bool) or not isinstance(config.mask_interval, int):
        raise FinepruneError(f"mask_interval={config.mask_interval!r}: must be a whole number of steps")
    if config.mask_interval < 1:
        raise FinepruneError(f"mask_interval={config.mask_interval!r}: must be at least 1 step")


_CHECKS = (
    _check_density,
    check_structure,
    _check_elements,
    _check_initial_density,
    _check_choices,
    _check_schedule,
    _check_rates,
    _check_scores,
    _check_penalty,
    _check_rest,
)


def _options(config: PruningConfig) -> Any:
    """Return the method's `Options` with the values that were given; None where none were."""
    given = config.options
    if given is None and config.mask_interval == config.traits.mask_interval:
        return None  # the defaults fit, and torch need not be imported
    kind = method_class(config.method).Options
    if given is None:
        kind().check(config)
        return None
    if not isinstance(given, kind):
        known = [entry.name for entry in fields(kind)]
        if not known:
            raise FinepruneError(f"options={given!r}: {config.method} has none; leave options out")
        check_keys(given, known, f"options of {config.method}")
        given = kind(**given)
    given.check(config)
    return given


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
