"""From a task's files or hub data set to texts and labels, each row checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fineprune._messages import listing
from fineprune.errors import FinepruneError
from fineprune.tasks.tables import hub_name, read_hub, read_table
from fineprune.tasks.text import labels as label_rules
from fineprune.tasks.text.metrics import CLASSES, REGRESSION
from fineprune.tasks.text.task import ClassificationConfig, ClassificationData, Examples


@dataclass(frozen=True)
class _Split:
    """One file or split as read: `where` it is from, its texts, and the cells of its label column."""

    where: str
    texts: list[list[str]]
    cells: list[Any]
    names: tuple[str, ...] | None = None  # of a hub ClassLabel: then cells are positions

    def examples(self, known: tuple[str, ...] | None) -> Examples:
        cells = self.cells
        if self.names is not None:
            cells = label_rules.from_class_label(cells, self.names, known, self.where)
        label_rules.check_labels(cells, self.where)
        ids: list[int] | list[float]
        if known is None:
            ids = label_rules.label_values(self.cells, self.where)
        else:
            ids = label_rules.label_ids(cells, known, self.where)
        return Examples(self.texts[0], self.texts[1] if len(self.texts) > 1 else None, ids)


def load_data(
    config: ClassificationConfig,
    need_train: bool = True,
    labels: Sequence[str] | None = None,
    regression: bool = False,
) -> ClassificationData:
    """Read the data of a task.

    What the labels mean is found in this order: what a trained model knows (`labels`, its class
    names, or `regression=True`; see `modeling.known_labels`), a metric of regression,
    `config.labels`, the names of a hub data set, the training data (see `labels.infer_labels`).

    Raises `FinepruneError`, with file and row where there is one: no training data while
    `need_train`, a text that is not text, a label that is missing or unknown, training data with
    one label only, labels not known without training data, settings against the trained model.
    """
    if need_train and config.hub is None and config.train is None:
        raise FinepruneError("task: no training data; give a `train` file")
    train = _read(config, config.train, config.train_split) if need_train else None
    validation = _read(config, config.validation, config.validation_split)
    more = {name: _read(config, place, place) for name, place in (config.more or {}).items()}
    if regression or labels is not None:
        known = _known_to_model(config, labels, regression)
    else:
        known = _known_from_data(config, train or validation, train is not None)
    examples = None if train is None else train.examples(known)
    if train is not None and examples is not None and len(set(examples.labels or ())) < 2:
        raise FinepruneError(
            f"{train.where}: every row has the label {train.cells[0]!r}; two or more are needed"
        )
    metric = config.metric or ("pearson" if known is None else "accuracy")
    others = {name: split.examples(known) for name, split in more.items()}
    return ClassificationData(examples, validation.examples(known), known, metric, others)


def _read(config: ClassificationConfig, path: str | None, split: str) -> _Split:
    columns = [*config.columns, config.label]
    names = None
    if config.hub is not None:
        where = hub_name(config.hub, config.subset, split)
        table, class_names = read_hub(config.hub, config.subset, split, columns)
        names = class_names.get(config.label)
    else:
        where = str(path)
        table = read_table(where, columns)
    for column in config.columns:
        for row, text in enumerate(table[column], start=1):
            if not isinstance(text, str):
                raise FinepruneError(
                    f"{where}, row {row}: column {column!r} holds {text!r}, which is not text"
                )
    return _Split(where, [table[column] for column in config.columns], table[config.label], names)


def _known_to_model(
    config: ClassificationConfig, labels: Sequence[str] | None, regression: bool
) -> tuple[str, ...] | None:
    known = None if labels is None else tuple(labels)
    if regression == (known is not None):
        raise FinepruneError(f"load_data: labels {known} and regression={regression} contradict each other")
    if config.labels is not None and config.labels != known:
        has = "is a regression" if known is None else f"has {listing(known)}"
        raise FinepruneError(f"task: labels is {list(config.labels)} but the model {has}; remove labels")
    allowed = REGRESSION if regression else CLASSES
    if config.metric is not None and config.metric not in allowed:
        kind = "predicts values" if regression else "predicts classes"
        raise FinepruneError(
            f"task: metric {config.metric!r} but the model {kind}; allowed: {', '.join(allowed)}"
        )
    return known


def _known_from_data(config: ClassificationConfig, split: _Split, is_train: bool) -> tuple[str, ...] | None:
    if config.metric in REGRESSION:
        return None
    if config.labels is not None or split.names is not None:
        return config.labels or split.names
    if not is_train:
        raise FinepruneError(
            f"task: the labels of {split.where} are not known without training data; give `labels`"
        )
    label_rules.check_labels(split.cells, split.where)
    known = label_rules.infer_labels(split.cells, split.where)
    if known is None and config.metric is not None:
        example = next(cell for cell in split.cells if isinstance(label_rules.number(cell), float))
        raise FinepruneError(
            f"{split.where}: label {example!r} is a value, not a class, but metric is {config.metric!r}; "
            f"allowed: {', '.join(REGRESSION)}"
        )
    return known
