"""Define a recipe: one YAML file with the model, the data, the training and the pruning of a run."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from fineprune._messages import choose
from fineprune._validation import check_keys, is_number, shown
from fineprune.config import Distillation, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import task_config
from fineprune.tasks.source import Source
from fineprune.training.host.learning_rates import Plan, Rates, Shape
from fineprune.training.run.builtin_recipes import locate
from fineprune.training.run.recipe_file import dump_yaml, override, read_yaml

TRACKERS = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow",
    "neptune", "swanlab", "tensorboard", "trackio", "wandb",
)  # fmt: skip
"""Trackers of transformers."""

_MOST = 2**53  # of whole numbers: beyond, floats skip some


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section: a pre-trained model, or its first layers."""

    name: str
    """A local folder, a name on the hub, or "minilm": all-MiniLM-L6-v2 from the extra `demo`."""

    layers: int | None = None
    """Keep only the first N transformer layers. None: all."""

    attention: str | None = None
    """How transformers computes attention, "eager" or "sdpa": the same values but for rounding, at another
    speed. None: eager for a run without dropout in bfloat16 on a CPU, where torch's fused backward is slow;
    else what transformers chooses."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model; read it first."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise FinepruneError(f"model.name={self.name!r}: must be a folder, a hub name, or minilm")
        _whole("model.layers", self.layers, 1, optional=True)
        if self.attention is not None:
            choose(self.attention, ("eager", "sdpa"), "model.attention")
        if not isinstance(self.trust_remote_code, bool):
            raise FinepruneError(f"model.trust_remote_code={self.trust_remote_code!r}: must be true or false")


@dataclass(frozen=True)
class TrainingConfig:
    """The `training` section. Steps are optimizer steps."""

    steps: int | None = None
    """Length of the run; give this or `epochs`."""

    epochs: float | None = None
    batch_size: int = 32
    accumulation: int = 1
    """Batches that make one optimizer step."""

    learning_rate: float = 3e-5
    warmup: float | int = 0.1
    """Steps over which the learning rates rise. A float is a share of all steps, an int is steps."""

    schedule: Shape = Plan.shape
    """How the learning rates go on. "linear" falls to the end; "hold" stays at the peak until the final
    density is reached (a dense run: for 70 % of the steps), then falls linearly; "cycles" falls linearly and
    begins again, `cycles` times; "cosine" falls along half a cosine."""

    cycles: int = Plan.cycles
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

    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 128
    """Tokens at which a text (or a pair) is cut."""

    group_by_length: bool = False
    """Make batches of texts of similar length: less padding, so much faster on short texts."""

    precision: str = "float32"
    """"float32", or "bfloat16" autocast."""

    seed: int = 0
    evaluate_every: int | None = None
    """Evaluate and save a checkpoint every N steps. None: ten times in a run."""

    keep_best: bool = False
    """Keep the best evaluated state at the final density instead of the last state."""

    report_to: tuple[str, ...] = ()
    """Trackers that also get the log, by their names in transformers: tensorboard, wandb, mlflow …"""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise FinepruneError("training: give either steps or epochs (for example training.steps=1000)")
        _whole("training.steps", self.steps, 1, optional=True)
        _real("training.epochs", self.epochs, optional=True)
        if self.epochs is not None and self.epochs <= 0:
            raise FinepruneError(f"training.epochs={self.epochs!r}: must be greater than 0")
        _whole("training.batch_size", self.batch_size, 1)
        _whole("training.accumulation", self.accumulation, 1)
        _whole("training.max_length", self.max_length, 4)
        _whole("training.seed", self.seed, 0)
        if self.seed >= 2**32:
            raise FinepruneError(f"training.seed={self.seed!r}: must be below 2**32")
        _whole("training.evaluate_every", self.evaluate_every, 1, optional=True)
        for name in ("learning_rate", "warmup", "weight_decay", "max_grad_norm"):
            _real(f"training.{name}", getattr(self, name))
            if name != "warmup":
                object.__setattr__(self, name, float(getattr(self, name)))
            if getattr(self, name) < 0:
                raise FinepruneError(f"training.{name}={getattr(self, name)!r}: must not be negative")
        if isinstance(self.warmup, float) and self.warmup >= 1:
            raise FinepruneError(
                f"training.warmup={self.warmup!r}: must be a share of the steps, in [0, 1), or steps, an int"
            )
        for name in ("head_lr", "norm_lr", "dropout"):
            _real(f"training.{name}", getattr(self, name), optional=True)
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < (
                1 if name == "dropout" else math.inf
            ):
                allowed = "a probability, in [0, 1)" if name == "dropout" else "a learning rate, at least 0"
                raise FinepruneError(f"training.{name}={getattr(self, name)!r}: must be {allowed}, or null")
        self.rates  # noqa: B018 - raises where a plan makes no sense
        choose(self.precision, ("float32", "bfloat16"), "training.precision")
        object.__setattr__(self, "report_to", _trackers(self.report_to))
        for name in ("keep_best", "group_by_length"):
            if not isinstance(getattr(self, name), bool):
                raise FinepruneError(f"training.{name}={getattr(self, name)!r}: must be true or false")

    @property
    def rates(self) -> Rates:
        """The plans of the learning rates."""
        plan = Plan(self.schedule, self.cycles, self.final_lr)
        own = self.score_schedule
        cycles = self.cycles if own == "cycles" else 1
        scores = None if own is None else Plan(own, cycles, self.final_lr)
        return Rates(plan, scores, self.head_lr, self.norm_lr)


@dataclass(frozen=True)
class DistillationConfig:
    """The `distillation` section: the teacher, and the weight of its loss."""

    teacher: str
    """A model fine-tuned on the task: a run folder, a model folder, or a name on the hub. Without a
    `pruning` and a `distillation` section, a recipe makes one."""

    alpha: float = Distillation.alpha
    temperature: float = Distillation.temperature
    task: float | None = Distillation.task
    hidden: float = Distillation.hidden
    cache: bool | str = False
    """Compute the teacher's answers to the training data once, and read them from disk in each
    epoch. True: in the run's folder, until the run is done. A folder: there, for other runs too."""

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, str) or not self.teacher:
            raise FinepruneError(
                f"distillation.teacher={self.teacher!r}: must be a run folder, a model folder or a hub name"
            )
        if not isinstance(self.cache, (bool, str)) or self.cache == "":
            raise FinepruneError(f"distillation.cache={self.cache!r}: must be true, false or a folder")
        try:
            loss = self.loss
        except FinepruneError as error:
            raise FinepruneError(f"distillation.{error}") from error
        for name, value in loss.to_dict().items():
            object.__setattr__(self, name, value)
        if self.cache and self.hidden > 0:
            raise FinepruneError(
                f"distillation.cache={self.cache!r}: hidden states are not stored; leave cache out, or "
                "distillation.hidden"
            )

    @property
    def loss(self) -> Distillation:
        """The settings of the loss."""
        return Distillation(self.alpha, self.temperature, self.task, self.hidden)


@dataclass(frozen=True)
class Recipe:
    """All settings of one run. `pruning` None trains densely, `distillation` None without a teacher."""

    model: ModelConfig
    task: Source
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=3))
    pruning: PruningConfig | None = None
    distillation: DistillationConfig | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the recipe of plain values, after checking every key and value.

        Raises:
            FinepruneError: for the first wrong key or value.
        """
        check_keys(values, (entry.name for entry in fields(cls)), "recipe")
        for section in ("model", "task", "training"):
            if section not in values:
                raise FinepruneError(f"recipe: the section {section!r} is missing")
        model = values["model"]
        model = {"name": model} if isinstance(model, str) else model
        check_keys(model, (entry.name for entry in fields(ModelConfig)), "model")
        if "name" not in model:
            raise FinepruneError("model: name is missing (a folder, a hub name, or minilm)")
        check_keys(values["training"], (entry.name for entry in fields(TrainingConfig)), "training")
        pruning, distillation = values.get("pruning"), values.get("distillation")
        if distillation is not None:
            check_keys(distillation, (entry.name for entry in fields(DistillationConfig)), "distillation")
            if "teacher" not in distillation:
                raise FinepruneError(
                    "distillation: teacher is missing (a run folder, a model folder or a hub name)"
                )
        return cls(
            model=ModelConfig(**model),
            task=task_config(values["task"]),
            training=TrainingConfig(**values["training"]),
            pruning=None if pruning is None else PruningConfig.from_dict(pruning),
            distillation=None if distillation is None else DistillationConfig(**distillation),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, defaults written out."""
        return {
            "model": asdict(self.model),
            "task": self.task.to_dict(),
            "training": asdict(self.training) | {"report_to": list(self.training.report_to)},
            "pruning": None if self.pruning is None else self.pruning.to_dict(),
            "distillation": None if self.distillation is None else asdict(self.distillation),
        }

    def to_yaml(self) -> str:
        """Return the text of a file that `load` reads."""
        return dump_yaml(self.to_dict())

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a YAML file, with `key=value` overrides such as `pruning.density=0.03`.

        A value is read as YAML; `pruning=null` removes the section. A name without a suffix is a
        recipe of the package (`packaged`). A file may have a section `methods` with settings for each
        method, or for `dense`; they apply if the file or an override chooses that method. Overrides win.
        """
        path = locate(path)
        values = read_yaml(path, "recipe")
        if not isinstance(values, dict):
            raise FinepruneError(
                f"{path}: a recipe has the sections model, task, training, pruning and distillation"
            )
        return cls.from_dict(override(values, list(overrides)))


def _trackers(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise FinepruneError(
            f"training.report_to={value!r}: must be a list of trackers, such as [tensorboard]"
        )
    for name in names:
        choose(name, TRACKERS, "training.report_to")
    return tuple(names)


def _whole(name: str, value: Any, least: int, optional: bool = False) -> None:
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
