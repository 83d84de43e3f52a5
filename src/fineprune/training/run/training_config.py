"""Define the `training` section of a recipe, and what it stands for where it says nothing."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from fineprune._messages import choose
from fineprune._validation import is_number, shown
from fineprune.errors import FinepruneError
from fineprune.training.host.learning_rates import SHAPES, Plan, Rates, Shape

TRACKERS = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow",
    "neptune", "swanlab", "tensorboard", "trackio", "wandb",
)  # fmt: skip
"""Trackers of transformers."""

_MOST = 2**53  # of whole numbers: beyond, floats skip some


@dataclass(frozen=True)
class TrainingConfig:
    """The `training` section. Steps are optimizer steps."""

    steps: int | None = None
    """Length of the run; or give `epochs`. Neither: by the number of examples (`chosen_steps`)."""

    epochs: float | None = None
    """Length of the run in passes over the training data; or give `steps`."""

    batch_size: int = 32
    """Examples of a batch, over all processes."""

    accumulation: int = 1
    """Batches that make one optimizer step."""

    learning_rate: float | None = None
    """The peak. None: by the model's width, and whether it is pruned (`chosen_rate`)."""

    warmup: float | int = 0.1
    """Steps over which the learning rates rise. A float is a share of all steps, an int is steps."""

    schedule: Shape = Plan.shape
    """How the learning rates go on. "linear" falls to the end; "hold" stays at the peak until the final
    density is reached (a dense run: for 70 % of the steps), then falls linearly; "cycles" falls linearly and
    begins again, `cycles` times; "cosine" falls along half a cosine."""

    cycles: int = Plan.cycles
    """How often the learning rates fall with `schedule` "cycles"."""

    final_lr: float = Plan.final
    """Where the learning rates end, in the run or in each cycle, as a share of the peak."""

    score_schedule: Shape | None = None
    """The schedule of the scores' learning rate. None: `schedule`."""

    head_lr: float | None = None
    """Learning rate of the parameters outside the encoder. None: `learning_rate`."""

    norm_lr: float | None = None
    """Learning rate of biases and norms. None: `learning_rate`."""

    dropout: float | None = None
    """Every dropout of the model while it trains. None: the model's own."""

    layer_drop: float = 0.0
    """Leave out each layer with this probability, drawn in each pass while the model trains (LayerDrop)."""

    weight_decay: float = 0.0
    """Weight decay of AdamW."""

    max_grad_norm: float = 1.0
    """Norm to which the gradient is clipped; 0 does not clip."""

    max_length: int = 128
    """Tokens at which a text (or a pair) is cut."""

    group_by_length: bool = False
    """Make batches of texts of similar length: less padding, so much faster on short texts."""

    precision: str = "float32"
    """"float32", or "bfloat16" autocast."""

    seed: int = 0
    """Seed of the new head, the order of the data and the dropout."""

    evaluate_every: int | None = None
    """Evaluate and save a checkpoint every N steps. None: save ten times in a run, and evaluate as often, or
    less often where that would take more than a fifth of the time."""

    keep_best: bool = False
    """Keep the best evaluated state at the final density instead of the last state."""

    report_to: tuple[str, ...] = ()
    """Trackers that also get the log, by their names in transformers: tensorboard, wandb, mlflow …"""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise FinepruneError(
                f"training: give either steps or epochs, not steps={shown(self.steps)} and "
                f"epochs={shown(self.epochs)}; make one of them null"
            )
        whole("training.steps", self.steps, 1, optional=True)
        _real("training.epochs", self.epochs, optional=True)
        if self.epochs is not None and self.epochs <= 0:
            raise FinepruneError(f"training.epochs={self.epochs!r}: must be greater than 0")
        whole("training.batch_size", self.batch_size, 1)
        whole("training.accumulation", self.accumulation, 1)
        whole("training.max_length", self.max_length, 4)
        whole("training.seed", self.seed, 0)
        if self.seed >= 2**32:
            raise FinepruneError(f"training.seed={self.seed!r}: must be below 2**32")
        whole("training.evaluate_every", self.evaluate_every, 1, optional=True)
        for name in ("learning_rate", "warmup", "weight_decay", "max_grad_norm"):
            if getattr(self, name) is None and name == "learning_rate":
                continue
            _real(f"training.{name}", getattr(self, name))
            if name != "warmup":
                object.__setattr__(self, name, float(getattr(self, name)))
            if getattr(self, name) < 0:
                raise FinepruneError(f"training.{name}={getattr(self, name)!r}: must not be negative")
        if isinstance(self.warmup, float) and self.warmup >= 1:
            raise FinepruneError(
                f"training.warmup={self.warmup!r}: must be a share of the steps, in [0, 1), or steps, an int"
            )
        _real("training.layer_drop", self.layer_drop)
        if not 0 <= self.layer_drop < 1:
            raise FinepruneError(
                f"training.layer_drop={self.layer_drop!r}: must be a probability, in [0, 1); 0.2 is usual"
            )
        for name in ("head_lr", "norm_lr", "dropout"):
            _real(f"training.{name}", getattr(self, name), optional=True)
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < (
                1 if name == "dropout" else math.inf
            ):
                allowed = "a probability, in [0, 1)" if name == "dropout" else "a learning rate, at least 0"
                raise FinepruneError(f"training.{name}={getattr(self, name)!r}: must be {allowed}, or null")
        if self.score_schedule is not None:
            choose(self.score_schedule, SHAPES, "training.score_schedule")
        self.rates  # noqa: B018 - raises where a plan makes no sense
        choose(self.precision, ("float32", "bfloat16"), "training.precision")
        object.__setattr__(self, "report_to", _trackers(self.report_to))
        for name in ("keep_best", "group_by_length"):
            if not isinstance(getattr(self, name), bool):
                raise FinepruneError(f"training.{name}={getattr(self, name)!r}: must be true or false")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, defaults written out."""
        return asdict(self) | {"report_to": list(self.report_to)}

    def with_chosen(self, examples: int, width: int, pruned: bool) -> Self:
        """Return the section with steps and learning rate filled in where it gives none.

        Args:
            examples: the rows of the training data.
            width: the model's hidden size.
            pruned: whether this training prunes.
        """
        chosen: dict[str, Any] = {}
        if self.steps is None and self.epochs is None:
            chosen["steps"] = chosen_steps(examples, self.batch_size * self.accumulation)
        if self.learning_rate is None:
            chosen["learning_rate"] = chosen_rate(width, pruned)
        return replace(self, **chosen)

    def warmup_steps(self, steps: int) -> int:
        """Return the steps over which the learning rates of a run rise.

        Raises:
            FinepruneError: the run is not longer than that.
        """
        if not isinstance(self.warmup, int):
            return round(self.warmup * steps)
        if self.warmup >= steps:
            raise FinepruneError(f"training.warmup={self.warmup}: the run has {steps} steps; give fewer")
        return self.warmup

    @property
    def rates(self) -> Rates:
        """The plans of the learning rates."""
        plan = Plan(self.schedule, self.cycles, self.final_lr)
        own = self.score_schedule
        cycles = self.cycles if own == "cycles" else 1
        scores = None if own is None else Plan(own, cycles, self.final_lr)
        return Rates(plan, scores, self.head_lr, self.norm_lr)


def chosen_steps(examples: int, per_step: int) -> int:
    """Return the steps of a training whose recipe gives none: two epochs, but at least 300 and at most 3,000.

    Fewer leave the weights no time to adapt (docs/short-runs.md); more take hours on a CPU.

    Args:
        examples: the rows of the training data.
        per_step: the rows of an optimizer step.
    """
    return min(max(300, math.ceil(2 * examples / per_step)), 3000)


def chosen_rate(width: int, pruned: bool) -> float:
    """Return the peak learning rate of a training whose recipe gives none, with two digits.

    A power of the width of the hidden states runs through two points. A dense run takes 2e-4 for MiniLM (384)
    and 3e-5 for BERT-base (768), the rate of the paper; a short pruning run 1e-3 for MiniLM and 1e-4 for
    MPNet-base (docs/short-runs.md). Widths below 384 and above 1,024 count as these.
    """
    narrow, wide = (1e-3, 1e-4) if pruned else (2e-4, 3e-5)
    rate = narrow * (wide / narrow) ** math.log2(min(max(width, 384), 1024) / 384)
    return float(f"{rate:.1e}")


def _trackers(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise FinepruneError(
            f"training.report_to={value!r}: must be a list of trackers, such as [tensorboard]"
        )
    for name in names:
        choose(name, TRACKERS, "training.report_to")
    return tuple(names)


def whole(name: str, value: Any, least: int, optional: bool = False) -> None:
    """Raise `FinepruneError` unless a setting is a whole number from `least` on, or None if `optional`."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _MOST:
        raise FinepruneError(
            f"{name}={shown(value)}: must be a whole number, at least {least} and below 2**53"
        )


def _real(name: str, value: Any, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not is_number(value):
        raise FinepruneError(f"{name}={shown(value)}: must be a finite number")
