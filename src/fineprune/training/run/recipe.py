"""A recipe: one YAML file that says what is trained, on what, how, and how it is pruned."""

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import yaml

from fineprune._messages import one_line
from fineprune._validation import check_keys
from fineprune.config import METHODS, Distillation, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import task_config
from fineprune.tasks.source import Source
from fineprune.training.run.builtin_recipes import locate


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section: a pre-trained model, or its first layers."""

    name: str
    """A local folder, a name on the hub, or "minilm": all-MiniLM-L6-v2 from the extra `demo`."""

    layers: int | None = None
    """Keep only the first so many transformer layers. None: all."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise FinepruneError(f"model.name={self.name!r}: must be a folder, a hub name, or minilm")
        _whole("model.layers", self.layers, 1, optional=True)


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
    """Over so many steps the learning rates rise; they then fall linearly to 0. A float is a share of
    all steps, an int is steps."""

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
    """Evaluate and save a checkpoint every so many steps. None: ten times in a run."""

    keep_best: bool = False
    """Keep the best evaluated state at the final density instead of the last state."""

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
        if self.precision not in ("float32", "bfloat16"):
            raise FinepruneError(f"training.precision={self.precision!r}: allowed are float32, bfloat16")
        for name in ("keep_best", "group_by_length"):
            if not isinstance(getattr(self, name), bool):
                raise FinepruneError(f"training.{name}={getattr(self, name)!r}: must be true or false")


@dataclass(frozen=True)
class DistillationConfig:
    """The `distillation` section: who teaches, and how much it counts."""

    teacher: str
    """A model fine-tuned on the task: a run folder, a model folder, or a name on the hub. Without a
    `pruning` and a `distillation` section, a recipe makes one."""

    alpha: float = Distillation.alpha
    temperature: float = Distillation.temperature
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

    @property
    def loss(self) -> Distillation:
        """The settings that the loss has."""
        return Distillation(self.alpha, self.temperature)


@dataclass(frozen=True)
class Recipe:
    """All of one run. `pruning` None trains densely, `distillation` None without a teacher."""

    model: ModelConfig
    task: Source
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=3))
    pruning: PruningConfig | None = None
    distillation: DistillationConfig | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Check every key and value; raises `FinepruneError` with the first that is wrong."""
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
        """Plain values, defaults written out."""
        return {
            "model": asdict(self.model),
            "task": self.task.to_dict(),
            "training": asdict(self.training),
            "pruning": None if self.pruning is None else self.pruning.to_dict(),
            "distillation": None if self.distillation is None else asdict(self.distillation),
        }

    def to_yaml(self) -> str:
        """The recipe as a file that `load` reads."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a YAML file, with `key=value` overrides such as `pruning.density=0.03`.

        A value is read as YAML; `pruning=null` removes the section. A name without a suffix is a
        recipe of the package (`packaged`). A file may have a section `methods`: settings of a
        method's own, or of `dense`, which hold where that method is the one chosen, by the file or by
        an override. Overrides win.
        """
        path = locate(path)
        values = read_yaml(path, "recipe")
        if not isinstance(values, dict):
            raise FinepruneError(
                f"{path}: a recipe has the sections model, task, training, pruning and distillation"
            )
        return cls.from_dict(_overridden(values, list(overrides)))


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds; raises `FinepruneError`, which calls the file the `what`."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FinepruneError(f"{path}: the {what} cannot be read ({reason})") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise FinepruneError(f"{path}: not YAML ({one_line(error)})") from error


class _Loader(yaml.SafeLoader):
    """YAML in which 2e-4 is a number, as in YAML 1.2 and as everybody writes it, and no key stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                text = f"the key {key.value} is there twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def _overridden(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The values with those of the chosen method's own, then the overrides, and without `methods`."""
    own = values.pop("methods", None) or {}
    check_keys(own, (*METHODS, "dense"), "methods")
    before = copy.deepcopy(values)
    for override in overrides:
        _override(values, override)
    if not own:
        return values
    pruning = values.get("pruning")
    chosen = str(pruning.get("method", PruningConfig.method)) if isinstance(pruning, dict) else "dense"
    settings_of = own.get(chosen) or {}
    if not isinstance(settings_of, Mapping):
        raise FinepruneError(f"methods.{chosen}: expected a mapping of sections, got {settings_of!r}")
    for section, settings in settings_of.items():
        there = before.get(section)
        merge = isinstance(there, dict) and isinstance(settings, dict)
        before[section] = there | settings if merge else settings
    for override in overrides:
        _override(before, override)
    return before


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise FinepruneError(f"{override!r}: overrides look like pruning.density=0.03")
    for part in parts[:-1]:
        inner = values.get(part)
        if inner is None:
            inner = values[part] = {}
        elif isinstance(inner, str) and part in ("model", "task"):
            inner = values[part] = {"name": inner}
        if not isinstance(inner, dict):
            raise FinepruneError(f"{override!r}: {part} is {inner!r}, which has no settings in it")
        values = inner
    try:
        values[parts[-1]] = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise FinepruneError(f"{override!r}: the value is not YAML") from error


def _whole(name: str, value: Any, least: int, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise FinepruneError(f"{name}={value!r}: must be a whole number, at least {least}")


def _real(name: str, value: Any, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FinepruneError(f"{name}={value!r}: must be a finite number")
