"""Define a recipe: one YAML file with the model, the data, the training and the pruning of a run."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from fineprune._validation import check_keys
from fineprune.config import METHODS, Distillation, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.structure import shrinks
from fineprune.tasks.kinds import task_config
from fineprune.tasks.source import Source
from fineprune.training.run.builtin_recipes import locate
from fineprune.training.run.densities import (
    WHOLE,
    check_densities,
    folder_of,
    length_before,
    own_length,
    split,
)
from fineprune.training.run.labeled import check_labeled
from fineprune.training.run.model_section import ModelConfig as ModelConfig
from fineprune.training.run.recipe_file import dump_yaml, override, read_yaml
from fineprune.training.run.refine import RefineConfig, check_refine
from fineprune.training.run.training_config import TrainingConfig

_SHARED = ("batch_size", "accumulation", "max_length", "group_by_length", "precision", "seed", "report_to")
"""Settings of `training` that `dense` and `refine` have too unless they give their own."""

_WHOLE: dict[str, Any] = {"layers": None, "structure": None, "density": None, "low_rank": None}
"""Settings of a model that a stage before has cut already."""

_AS_IT_IS: dict[str, Any] = {"steps": 1, "learning_rate": 0.0, "evaluate_every": 2}
"""Settings of a dense stage that leaves its model as it is, and scores it at the end alone."""

_Stage = TypeVar("_Stage", bound=TrainingConfig)


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
    similarity: float = Distillation.similarity
    graft: float | None = Distillation.graft
    graft_until: float = Distillation.graft_until
    layers: str | tuple[tuple[int, int], ...] = Distillation.layers
    separate: bool = Distillation.separate
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
        if self.cache and self.graft is not None:
            raise FinepruneError(
                f"distillation.cache={self.cache!r}: graft needs the teacher's blocks in each step; leave "
                "cache out, or distillation.graft"
            )
        if self.cache and self.hidden > 0:
            raise FinepruneError(
                f"distillation.cache={self.cache!r}: hidden states are not stored; leave cache out, or "
                "distillation.hidden"
            )

    @property
    def loss(self) -> Distillation:
        """The settings of the loss."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(Distillation)}
        return Distillation(**own)


@dataclass(frozen=True)
class Recipe:
    """All settings of one run. `pruning` None trains densely, `distillation` None without a teacher.

    `dense` puts a stage before it: the model is fine-tuned densely with these settings, into the folder
    `dense` in the run's; the run goes on from there, and that model teaches if `distillation` names no other.
    In a file or an override `dense` may name a model that is fine-tuned already, in the place of `model`: the
    stage scores it then, and trains nothing.
    `refine` puts one after it: the pruned model is made smaller and trains on with these settings and the
    same teacher. What came before is a run of its own, in the folder `pruned`.

    `earlier_densities` are those at which a model is finished before the run prunes on to `pruning.density`,
    each a run of its own in the folder `density-0.5` and so on. `pruning.density: [0.5, 0.25, 0.1]` says the
    same in short. The steps of `training` are those of all densities, in equal shares.
    """

    model: ModelConfig
    task: Source
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=3))
    pruning: PruningConfig | None = None
    distillation: DistillationConfig | None = None
    dense: TrainingConfig | None = None
    refine: RefineConfig | None = None
    earlier_densities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.task.own_teacher:
            self._teach_by_dense_model()
        if self.distillation is not None and self.distillation.teacher is None and self.dense is None:
            raise FinepruneError(
                "distillation: teacher is missing (a run folder, a model folder or a hub name), and there is "
                "no section dense, whose model would be it"
            )
        if self.refine is not None:
            check_refine(self.refine, self.pruning)
        if self.earlier_densities:
            check_densities(self.earlier_densities, self.pruning, self.training)
            if self.refine is not None:
                raise FinepruneError(
                    "refine: not with several densities; leave it out, and train on the model that you take "
                    "(model=RUN/density-0.5)"
                )
            self.at_earlier_density  # noqa: B018 - raises where one cannot be reached

    def _teach_by_dense_model(self) -> None:
        """Make the dense model the teacher, where the data have no labels and no other is named."""
        labeled = self.task.own_loss
        own = DistillationConfig(alpha=0, task=1) if labeled else DistillationConfig()
        taught = self.distillation or own
        if self.dense is not None:
            why = "the dense model is given" if labeled else "there are no labels to fine-tune on"
            raise FinepruneError(f"dense: {why} (task.kind={self.task.kind}); leave it out")
        if labeled:
            check_labeled(taught.loss, taught.cache, self.training.batch_size)
        for name in ("temperature",) if labeled else ("task", "temperature"):
            if getattr(taught, name) != getattr(Distillation, name):
                raise FinepruneError(
                    f"distillation.{name}={getattr(taught, name)!r}: does nothing, since there are no labels "
                    f"and no classes (task.kind={self.task.kind}); leave it out"
                )
        if not labeled and not taught.loss.teaches:
            raise FinepruneError(
                "distillation: alpha, similarity and hidden are 0, so there is nothing to learn; give one of "
                "them a weight, or the data labels (task.loss)"
            )
        object.__setattr__(self, "distillation", replace(taught, teacher=taught.teacher or self.model.name))

    @property
    def stage_before(self) -> "tuple[str, Recipe] | None":
        """The stage before the last, or all of those: its name, and its recipe. None for a single stage."""
        if self.refine is not None:
            return "pruned", replace(self, refine=None)
        if self.earlier_densities:
            return folder_of(self.earlier_densities[-1]), self.at_earlier_density
        return None if self.dense is None else ("dense", self.dense_stage)

    @property
    def at_earlier_density(self) -> Self:
        """The run up to the density before the last."""
        *before, density = self.earlier_densities
        count = len(self.earlier_densities)
        assert self.pruning is not None
        return replace(
            self,
            training=replace(self.training, **length_before(vars(self.training), count)),
            pruning=replace(self.pruning, density=density),
            earlier_densities=tuple(before),
        )

    def last_stage(self, run: str) -> Self:
        """Return the last stage, which goes on from the folder of the run of `stage_before`."""
        if self.earlier_densities:
            return self._after_density(run)
        if self.refine is None:
            return self.after_dense(run)
        taught = self.distillation
        if taught is not None and taught.teacher is None:
            taught = replace(taught, teacher=str(Path(run) / "dense"))
        pruning = None
        if self.refine.hold_zeros and self.pruning is not None:
            holder = next(name for name, traits in METHODS.items() if traits.holds_zeros)
            pruning = PruningConfig(holder, freeze_embeddings=self.pruning.freeze_embeddings)
        start = replace(self.model, name=run, **_WHOLE)
        return replace(
            self,
            model=start,
            training=self.refine,
            pruning=pruning,
            distillation=taught,
            dense=None,
            refine=None,
        )

    def _after_density(self, run: str) -> Self:
        """Return the stage of the last density: it begins at the one before, with its model."""
        taught = self.distillation
        if taught is not None and taught.teacher is None:
            taught = replace(taught, teacher=str(Path(run).parent / "dense"))
        assert self.pruning is not None
        count = len(self.earlier_densities)
        place = Path(run) / WHOLE if shrinks(self.pruning.structure) else run
        return replace(
            self,
            model=replace(self.model, name=str(place), **_WHOLE),
            training=replace(self.training, **own_length(vars(self.training), count)),
            pruning=replace(self.pruning, initial_density=self.earlier_densities[-1], warmup=0),
            distillation=taught,
            dense=None,
            earlier_densities=(),
        )

    @property
    def is_tuned(self) -> bool:
        """Whether the model is fine-tuned already: there is a dense stage, and it trains nothing."""
        return self.dense is not None and self.dense.learning_rate == 0

    @property
    def dense_stage(self) -> Self:
        """The first of two stages: the dense fine-tuning."""
        if self.dense is None:
            raise ValueError("the recipe has no dense stage")
        return replace(
            self,
            training=self.dense,
            dense=None,
            pruning=None,
            distillation=None,
            refine=None,
            earlier_densities=(),
        )

    def after_dense(self, run: str) -> Self:
        """Return the second of two stages: the recipe from the folder of the dense run on."""
        taught = self.distillation
        if taught is not None and taught.teacher is None:
            taught = replace(taught, teacher=run)
        start = replace(self.model, name=run, **_WHOLE)
        return replace(self, model=start, distillation=taught, dense=None)

    def with_chosen(self, examples: int, width: int) -> Self:
        """Return the recipe with steps and learning rates filled in where it gives none.

        Args:
            examples: the rows of the training data.
            width: the model's hidden size.
        """
        dense = self.dense and self.dense.with_chosen(examples, width, pruned=False)
        training = self.training.with_chosen(examples, width, pruned=self.pruning is not None)
        if self.training.steps is None and training.steps is not None:  # of each density
            training = replace(training, steps=training.steps * (len(self.earlier_densities) + 1))
        refine = self.refine and self.refine.with_chosen(examples, width, pruned=False)
        return replace(self, training=training, dense=dense, refine=refine)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the recipe of plain values, after checking every key and value.

        Raises:
            FinepruneError: for the first wrong key or value.
        """
        check_keys(values, (entry.name for entry in fields(cls)), "recipe")
        if isinstance(tuned := values.get("dense"), str):
            if not tuned:
                raise FinepruneError("dense='': must be a run folder, a model folder, a hub name or settings")
            model = values.get("model")
            model = (model if isinstance(model, dict) else {}) | _WHOLE | {"name": tuned}
            values = {**values, "model": model, "dense": dict(_AS_IT_IS)}
        for section in ("model", "task", "training"):
            if section not in values:
                raise FinepruneError(f"recipe: the section {section!r} is missing")
        model = values["model"]
        model = {"name": model} if isinstance(model, str) else model
        check_keys(model, (entry.name for entry in fields(ModelConfig)), "model")
        if "name" not in model:
            raise FinepruneError("model: name is missing (a folder, a hub name, minilm or mpnet)")
        check_keys(values["training"], (entry.name for entry in fields(TrainingConfig)), "training")
        distillation = values.get("distillation")
        pruning, earlier = split(values.get("pruning"), values.get("earlier_densities"))
        if distillation is not None:
            check_keys(distillation, (entry.name for entry in fields(DistillationConfig)), "distillation")
        shared = {name: values["training"][name] for name in _SHARED if name in values["training"]}
        return cls(
            model=ModelConfig(**model),
            task=task_config(values["task"]),
            training=TrainingConfig(**values["training"]),
            pruning=None if pruning is None else PruningConfig.from_dict(pruning),
            distillation=None if distillation is None else DistillationConfig(**distillation),
            dense=_stage("dense", TrainingConfig, values.get("dense"), shared),
            refine=_stage("refine", RefineConfig, values.get("refine"), shared),
            earlier_densities=earlier,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, defaults written out."""
        return {
            "model": _plain(asdict(self.model)),
            "task": self.task.to_dict(),
            "training": self.training.to_dict(),
            "pruning": None if self.pruning is None else self.pruning.to_dict(),
            "distillation": None if self.distillation is None else asdict(self.distillation),
            "dense": None if self.dense is None else self.dense.to_dict(),
            "refine": None if self.refine is None else self.refine.to_dict(),
            "earlier_densities": list(self.earlier_densities),
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
                f"{path}: a recipe has the sections model, task, training, pruning, distillation, dense and "
                "refine"
            )
        texts = list(overrides)
        _forget_own_teacher(values, texts)
        chosen = override(values, texts)
        if isinstance(tuned := chosen.get("dense"), str):
            _check_model_alone(texts, tuned)
        return cls.from_dict(chosen)


def _forget_own_teacher(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Take out a teacher that is the file's own model, where overrides name another model and no teacher.

    A run writes down the dense model that teaches it; the model of another run is to be taught by its own.
    """
    keys = {text.partition("=")[0] for text in overrides}
    model, taught = values.get("model"), values.get("distillation")
    name = model.get("name") if isinstance(model, dict) else model
    if not isinstance(taught, dict) or name is None or taught.get("teacher") != name:
        return
    if keys & {"model", "model.name", "dense"} and not keys & {"distillation", "distillation.teacher"}:
        values["distillation"] = taught | {"teacher": None}


def not_tuned(name: str) -> FinepruneError:
    """Return the error about a model that `dense` names, and that has no head of the task."""
    return FinepruneError(
        f"dense={name}: its head is not of this task and these labels, so it is not fine-tuned on them; "
        f"model={name} without dense does that first"
    )


def _check_model_alone(overrides: Iterable[str], tuned: str) -> None:
    """Raise `FinepruneError` where overrides change the model that `tuned` takes the place of."""
    names = ("model", "model.name", *(f"model.{name}" for name in _WHOLE))
    for text in overrides:
        if text.partition("=")[0] in names:
            raise FinepruneError(
                f"{text}: with dense={tuned} that is the model, as it is; leave one of the two out"
            )


def _plain(section: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in section.items()}


def _stage(name: str, kind: type[_Stage], values: Any, shared: Mapping[str, Any]) -> _Stage | None:
    """Return the section of a stage before or after `training`; None for none."""
    if values is None:
        return None
    check_keys(values, (entry.name for entry in fields(kind)), name)
    try:
        return kind(**{**shared, **values})
    except FinepruneError as error:
        raise FinepruneError(str(error).replace("training", name, 1)) from error
