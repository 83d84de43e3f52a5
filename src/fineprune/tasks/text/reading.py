"""Read the texts and label cells of a file or of a split of the hub, each row checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fineprune.errors import FinepruneError
from fineprune.tasks.tables import hub_name, read_hub, read_table
from fineprune.tasks.text import labels as label_rules
from fineprune.tasks.text.data import Examples


@dataclass(frozen=True)
class LabeledTexts:
    """One file or split as it was read."""

    where: str
    """The name of the file or split in messages."""

    texts: list[list[str]]
    """A list for each column of text, of one length."""

    cells: list[Any]
    """The label column."""

    names: tuple[str, ...] | None = None
    """The names of a hub `ClassLabel`: then cells are positions in it."""

    def examples(self, labels: Sequence[str] | None) -> Examples:
        """Return the rows with the ids of their labels, or with values where `labels` is None.

        Raises:
            FinepruneError: a label that is missing or unknown, with its row.
        """
        cells = self.cells
        if self.names is not None:
            cells = label_rules.from_class_label(cells, self.names, labels, self.where)
        label_rules.check_labels(cells, self.where)
        ids: list[int] | list[float]
        if labels is None:
            ids = label_rules.label_values(self.cells, self.where)
        else:
            ids = label_rules.label_ids(cells, labels, self.where)
        return Examples(self.texts[0], self.texts[1] if len(self.texts) > 1 else None, ids)


def read_file(path: str, columns: Sequence[str], label: str) -> LabeledTexts:
    """Read the columns of text and the label column of a local file (`tables.read_table`)."""
    return _checked(path, read_table(path, [*columns, label]), columns, label, None)


def read_split(place: tuple[str, str | None, str], columns: Sequence[str], label: str) -> LabeledTexts:
    """Read the same from the hub: `place` is the data set's name, its subset and the split."""
    table, names = read_hub(*place, [*columns, label])
    return _checked(hub_name(*place), table, columns, label, names.get(label))


def _checked(
    where: str,
    table: dict[str, list[Any]],
    columns: Sequence[str],
    label: str,
    names: tuple[str, ...] | None,
) -> LabeledTexts:
    for column in columns:
        for row, text in enumerate(table[column], start=1):
            if not isinstance(text, str):
                raise FinepruneError(
                    f"{where}, row {row}: column {column!r} holds {text!r}, which is not text"
                )
    return LabeledTexts(where, [table[column] for column in columns], table[label], names)
