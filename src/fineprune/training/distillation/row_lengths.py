"""The lengths of tokenized rows."""

from collections.abc import Mapping
from typing import Any

from fineprune.errors import FinepruneError


def are_tokenized(rows: Any) -> bool:
    """Return whether rows, in a list or in a data set with columns, have `input_ids`."""
    if isinstance(rows, list):
        return all(isinstance(row, Mapping) and "input_ids" in row for row in rows)
    return "input_ids" in (getattr(rows, "column_names", None) or ())


def lengths_of(rows: Any, column: str = "input_ids") -> list[int]:
    """Return the number of tokens of each row in a column of ids, of several texts those of the longest.

    A `datasets.Dataset` is read by column, which is faster.

    Raises:
        FinepruneError: The rows have no `input_ids`.
    """
    columns = hasattr(rows, "column_names")
    try:
        every = list(rows[column] if columns else (row[column] for row in rows))
    except (KeyError, ValueError) as error:  # the latter of a data set
        raise FinepruneError(
            "the rows of the training data have no input_ids, so their lengths are unknown; tokenize them, "
            "or leave out what needs lengths (teacher_logits, group_by_length)"
        ) from error
    return [max(map(len, ids)) if len(ids) and isinstance(ids[0], list) else len(ids) for ids in every]
