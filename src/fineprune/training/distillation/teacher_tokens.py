"""Training texts in the tokens of a teacher that has a tokenizer of its own.

The rows have them in columns beside the student's: `teacher_input_ids`, `teacher_attention_mask`, and what
else the tokenizer makes. Answers to a whole text can be compared whatever tokens the two read.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import Head
from fineprune.training.distillation.row_lengths import are_tokenized

INPUTS = "fineprune_teacher_inputs"
"""The entry of a batch that holds what the teacher reads, by the names of its forward pass."""

_PREFIX = "teacher_"
IDS = f"{_PREFIX}input_ids"
"""The column of the teacher's ids."""

WHOLE_TEXTS: tuple[Head, ...] = ("texts", "values")
"""The heads that answer once a text."""


def teacher_columns(rows: Any, teacher: nn.Module) -> tuple[str, ...]:
    """Return the names of the columns that a teacher reads; none where rows have no ids for it."""
    if not are_tokenized(rows):
        return ()
    names = list(rows[0]) if isinstance(rows, list) and rows else getattr(rows, "column_names", [])
    known = {f"{_PREFIX}{name}" for name in inspect.signature(teacher.forward).parameters}
    return tuple(name for name in names if name in known) if IDS in names else ()


def reads_otherwise(tokenizer: Any, other: Any) -> bool:
    """Return whether two tokenizers differ in their ids; False where one of them has no vocabulary."""
    both = (tokenizer, other)
    return all(hasattr(one, "get_vocab") for one in both) and tokenizer.get_vocab() != other.get_vocab()


def with_teacher_columns(rows: Any, theirs: Any) -> Any:
    """Return a `datasets.Dataset` with what a teacher's tokenizer made of the same texts in columns beside.

    Args:
        rows: the student's rows.
        theirs: the teacher's, in the same order; their labels are left out.
    """
    for name in theirs.column_names:
        if name != "labels":
            rows = rows.add_column(f"{_PREFIX}{name}", theirs[name][:])
    return rows


class TeacherCollator:
    """A collator that pads what the teacher reads, on the right, and leaves the rest to another."""

    def __init__(
        self, collate: Callable[[list[Any]], Any], columns: Sequence[str], padding: int | None
    ) -> None:
        """Prepare to collate.

        Args:
            collate: the collator of the student's columns.
            columns: the teacher's.
            padding: the id of the teacher's padding. None: 0, which its attention mask hides.
        """
        self._collate = collate
        self._columns = columns
        self._padding = padding or 0

    def __call__(self, rows: list[Any]) -> Any:
        """Return the batch of the student's columns, with the teacher's in the entry `INPUTS`."""
        batch = self._collate(
            [{name: value for name, value in row.items() if name not in self._columns} for row in rows]
        )
        if all(name in row for row in rows for name in self._columns):  # rows to evaluate have none
            batch[INPUTS] = {name.removeprefix(_PREFIX): self._padded(rows, name) for name in self._columns}
        return batch

    def _padded(self, rows: list[Any], name: str) -> torch.Tensor:
        values = [torch.as_tensor(row[name]) for row in rows]
        padding = self._padding if name == IDS else 0
        return pad_sequence(values, batch_first=True, padding_value=padding)


def check_whole_texts(head: Head, name: str, config: Any) -> None:
    """Raise `FinepruneError` for what cannot be compared between models that read other tokens.

    Args:
        head: what both answer.
        name: the teacher's name in messages.
        config: the `Distillation`.
    """
    if head not in WHOLE_TEXTS:
        raise FinepruneError(
            f"{name}: reads tokens of its own ({IDS}), and the model answers {head}, which belong to the "
            "student's tokens; only classes and values of whole texts can be compared"
        )
    for setting, none in (("hidden", "0"), ("graft", "null")):
        if getattr(config, setting):
            raise FinepruneError(
                f"{name}: reads tokens of its own ({IDS}), so its hidden states and blocks do not belong to "
                f"the student's tokens; leave distillation's {setting} out (in a recipe "
                f"distillation.{setting}={none})"
            )
