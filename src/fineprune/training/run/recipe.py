"""Define a recipe: one YAML file with the model, the data, the training and the pruning of a run."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from fineprune._messages import choose
from fineprune._validation import check_keys
from fineprune.config import Distillation, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import task_config
from fineprune.tasks.source import Source
from fineprune.training.run.builtin_recipes import locate
from fineprune.training.run.recipe_file import dump_yaml, override, read_yaml
from fineprune.training.run.training_config import TrainingConfig, whole

_SHARED = ("batch_size", "accumulation", "max_length", "group_by_length", "precision", "seed", "report_to")
"""Settings of `training` that `dense` has too unless it gives its own."""


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
        whole("model.layers", self.layers, 1, optional=True)
        if self.attention is not None:
            choose(self.attention, ("eager", "sdpa"), "model.attention")
        if not isinstance(self.trust_remote_code, bool):
            raise FinepruneError(f"model.trust_remote_code={self.trust_remote_code!r}: must be true or false")


@dataclass(frozen=True)
class DistillationConfig:
    """The `distillation` section: the teacher, and the weight of its loss."""

    teacher: str | None = None
    """A model fine-tuned on the task: a run folder, a model folder, or a name on the hub. None: the dense
    stage. A recipe without `pruning` and `distillation` makes one."""

    alpha: float = Distillation.alpha
    temperature: float = Distillation.temperature
    task: float | None = Distillation.task
    hidden: float = Distillation.hidden
    cache: bool | str = False
    """Compute the teacher's answers to the training data once, and read them from disk in each
    epoch. True: in the run's folder, until the run is done. A folder: there, for other runs too."""

    def __post_init__(self) -> None:
        if self.teacher is not None and (not isinstance(self.teacher, str) or not self.teacher):
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
    """All settings of one run. `pruning` None trains densely, `distillation` None without a teacher.

    `dense` makes the run one of two stages: the model is fine-tuned densely with these settings, into the
    folder `dense` in the run's; the run goes on from there, and that model teaches if `distillation` names
    no other.
    """

    model: ModelConfig
    task: Source
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=3))
    pruning: PruningConfig | None = None
    distillation: DistillationConfig | None = None
    dense: TrainingConfig | None = None

    def __post_init__(self) -> None:
        if self.distillation is not None and self.distillation.teacher is None and self.dense is None:
            raise FinepruneError(
                "distillation: teacher is missing (a run folder, a model folder or a hub name), and there is "
                "no section dense, whose model would be it"
            )

    @property
    def dense_stage(self) -> Self:
        """The first of two stages: the dense fine-tuning."""
        if self.dense is None:
            raise ValueError("the recipe has no dense stage")
        return replace(self, training=self.dense, dense=None, pruning=None, distillation=None)

    def after_dense(self, run: str) -> Self:
        """Return the second of two stages: the recipe from the folder of the dense run on."""
        taught = self.distillation
        if taught is not None and taught.teacher is None:
            taught = replace(taught, teacher=run)
        start = replace(self.model, name=run, layers=None)
        return replace(self, model=start, distillation=taught, dense=None)

    def with_chosen(self, examples: int, width: int) -> Self:
        """Return the recipe with steps and learning rates filled in where it gives none.

        Args:
            examples: the rows of the training data.
            width: the model's hidden size.
        """
        dense = self.dense and self.dense.with_chosen(examples, width, pruned=False)
        training = self.training.with_chosen(examples, width, pruned=self.pruning is not None)
        return replace(self, training=training, dense=dense)

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
        pruning, distillation, dense = (values.get(name) for name in ("pruning", "distillation", "dense"))
        if distillation is not None:
            check_keys(distillation, (entry.name for entry in fields(DistillationConfig)), "distillation")
        if dense is not None:
            check_keys(dense, (entry.name for entry in fields(TrainingConfig)), "dense")
            dense = {name: values["training"][name] for name in _SHARED if name in values["training"]} | dense
        return cls(
            model=ModelConfig(**model),
            task=task_config(values["task"]),
            training=TrainingConfig(**values["training"]),
            pruning=None if pruning is None else PruningConfig.from_dict(pruning),
            distillation=None if distillation is None else DistillationConfig(**distillation),
            dense=None if dense is None else _dense(dense),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, defaults written out."""
        return {
            "model": asdict(self.model),
            "task": self.task.to_dict(),
            "training": self.training.to_dict(),
            "pruning": None if self.pruning is None else self.pruning.to_dict(),
            "distillation": None if self.distillation is None else asdict(self.distillation),
            "dense": None if self.dense is None else self.dense.to_dict(),
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
                f"{path}: a recipe has the sections model, task, training, pruning, distillation and dense"
            )
        return cls.from_dict(override(values, list(overrides)))


def _dense(values: Mapping[str, Any]) -> TrainingConfig:
    try:
        return TrainingConfig(**values)
    except FinepruneError as error:
        raise FinepruneError(str(error).replace("training", "dense", 1)) from error
