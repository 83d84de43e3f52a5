"""Where the data of a task are: files, or splits of a data set on the Hugging Face hub."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from fineprune._text_files import find_file
from fineprune._validation import check_keys
from fineprune.errors import FinepruneError
from fineprune.tasks.data import TaskData
from fineprune.tasks.tables import check_columns, column_names, is_of_cola

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Read = TypeVar("_Read")

_LISTS = ("text", "labels", "matryoshka")  # settings that YAML gives as lists
_OF_HUB = ("subset", "train_split", "validation_split")
_FILES = ("train", "validation", "more", "sts", "retrieval")
_PLACES = ("train", "validation", "hub", *_OF_HUB, "more")


@dataclass(frozen=True)
class Source(ABC):
    """The `task` section of a recipe; each kind of task adds its settings and its checks.

    Raises:
        FinepruneError: settings that contradict each other, or are of a wrong type.
    """

    own_teacher: ClassVar[bool] = False
    """Whether the data have no labels, and the dense model's answers take their place."""

    kind: str = ""
    """The name in the table of kinds."""

    train: str | None = None
    """The file of the training data."""

    validation: str | None = None
    """The file of the validation data."""

    hub: str | None = None
    """In place of files: the name of a data set on the hub."""

    subset: str | None = None
    """The subset of the hub's data set, where it has several."""

    train_split: str = "train"
    """The split of the hub's data set to train on."""

    validation_split: str = "validation"
    """The split of the hub's data set to score on."""

    def __post_init__(self) -> None:
        for name in _LISTS:
            if isinstance(getattr(self, name, None), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_source()
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise `FinepruneError` for settings of the kind that cannot work."""

    @abstractmethod
    def load(self, need_train: bool = True, model: "PreTrainedModel | None" = None) -> TaskData:
        """Read and check the data.

        Args:
            need_train: read the training data, too.
            model: a trained model of this kind, which determines the meaning of the labels.

        Raises:
            FinepruneError: data that cannot be used, with the file and the row or line.
        """

    @property
    def own_loss(self) -> bool:
        """Whether a kind whose dense model teaches has labels to learn as well."""
        return False

    def wanted_columns(self, place: str) -> tuple[str, ...]:
        """Return the columns that a file of the data must have; none where it is no table."""
        return ()

    def files(self) -> tuple[str, ...]:
        """Return the files of the data; none where they are on the hub."""
        return tuple(place for place in (self.train, self.validation) if place is not None)

    def check_files(self) -> None:
        """Raise `FinepruneError` for files that are not there or lack columns; reads one line of each."""
        for place in self.files():
            path = self.named_file(place)
            if path.stat().st_size == 0:
                raise FinepruneError(f"{place}: the file is empty")
            names = column_names(path)
            if names and not is_of_cola(names):
                check_columns(place, self.wanted_columns(place), names)

    def named_file(self, place: str) -> Path:
        """Return the path of one of `files`, or raise `FinepruneError`, which names its setting."""
        more = getattr(self, "more", None) or {}
        places = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        places |= {f"more.{name}": file for name, file in more.items()}
        try:
            return find_file(place)
        except FinepruneError as error:
            setting = next(name for name, file in places.items() if file == place)
            raise FinepruneError(f"task.{setting}={error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make one from the `task` section of a recipe; unknown settings are errors."""
        check_keys(values, [setting.name for setting in fields(cls)], "task")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values for YAML or JSON; `from_dict` makes an equal source of them."""
        return {setting.name: _plain(getattr(self, setting.name)) for setting in fields(self)}

    def with_validation(self, path: str) -> Self:
        """Return the same task scored on another file, without training data."""
        defaults: dict[str, Any] = {
            setting.name: setting.default for setting in fields(self) if setting.name in _PLACES
        }
        return replace(self, **(defaults | {"validation": path}))

    def under(self, folder: Path) -> Self:
        """Return the same task with its files under a folder, where they are named relative to it."""

        def placed(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: placed(place) for name, place in value.items()}
            return value if value is None else str(folder / Path(value).expanduser())

        names = [setting.name for setting in fields(self) if setting.name in _FILES]
        return replace(self, **{name: placed(getattr(self, name)) for name in names})

    def places(self, need_train: bool) -> tuple[str | None, str]:
        """Return the files, or the splits of the hub's data set, of the training and validation data.

        Raises:
            FinepruneError: training data are needed and there are none.
        """
        if self.hub is not None:
            return self.train_split if need_train else None, self.validation_split
        if need_train and self.train is None:
            raise FinepruneError("task: no training data; give a `train` file")
        return self.train if need_train else None, str(self.validation)

    def read(
        self,
        place: str,
        from_file: Callable[[str], _Read],
        from_hub: Callable[[str, str | None, str], _Read],
    ) -> _Read:
        """Read a file by its path, or a split by the data set's name, its subset and the split."""
        return from_file(place) if self.hub is None else from_hub(self.hub, self.subset, place)

    def _check_source(self) -> None:
        expected = type(self).kind
        if self.kind != expected:
            raise FinepruneError(f"task: kind is {self.kind!r}, expected {expected!r}")
        for name in ("train", "validation", "hub", "subset"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        for name in ("train_split", "validation_split"):
            check_text(name, getattr(self, name))
        if self.hub is None:
            self._check_files()
            return
        for name in ("train", "validation"):
            if getattr(self, name) is not None:
                raise FinepruneError(
                    f"task: {name} is the file {getattr(self, name)!r} and hub is {self.hub!r}; "
                    "give files or a data set on the hub, not both"
                )

    def _check_files(self) -> None:
        if self.validation is None:
            if self.train is None:
                raise FinepruneError(
                    "task: no data; give the files `train` and `validation`, or a data set as `hub`"
                )
            raise FinepruneError(
                f"task: train is {self.train!r} but there is no `validation` file to score on"
            )
        for name in _OF_HUB:
            if getattr(self, name) != getattr(Source, name):
                raise FinepruneError(
                    f"task: {name} is {getattr(self, name)!r} but belongs to `hub`, which is not set"
                )


def check_text(name: str, value: Any) -> None:
    """Raise unless a setting is text, and not empty."""
    if not isinstance(value, str) or not value:
        raise FinepruneError(
            f"task: {name} is {value!r}, expected text (in YAML, put 0, yes and no in quotes)"
        )


def check_labels(labels: Any) -> None:
    """Raise unless the setting `labels` is None, or names two or more classes, each once."""
    if labels is None:
        return
    if not isinstance(labels, tuple):
        raise FinepruneError(f"task: labels is {labels!r}, expected a list of names")
    for label in labels:
        check_text("labels", label)
        if labels.count(label) > 1:
            raise FinepruneError(f"task: labels has {label!r} twice")
    if len(labels) < 2:
        raise FinepruneError(f"task: labels is {list(labels)}, expected two or more names")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
