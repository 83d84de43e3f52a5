"""Fingerprints of data sets: two that differ in a row, a label or their order have different ones."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_ROWS = 10_000  # of a table at a time
_LARGEST = 2 << 30  # bytes: reading more would take longer than a user should wait


def fingerprint(data: Any) -> Any:
    """Return a digest of the content, for JSON; None where the data are unknown until they are read.

    Tables of `datasets` are read without their transforms, lists of plain rows as they are. Of other data
    sets, and of tables over 2 GB, it is the number of rows alone. Several, by name, have one each.
    """
    if isinstance(data, Mapping):
        return {str(name): fingerprint(rows) for name, rows in data.items()}
    if not hasattr(data, "__len__"):
        return None
    rows = len(data)
    digest = hashlib.blake2b(digest_size=8)
    datasets = sys.modules.get("datasets")  # a process that has such data has imported it
    if datasets is not None and isinstance(data, datasets.Dataset):
        known = data.data.nbytes <= _LARGEST and _add_table(digest, data)
    else:
        known = isinstance(data, (list, tuple)) and _add_rows(digest, data)
    return f"{rows} rows, {digest.hexdigest()}" if known else f"{rows} rows"


def _add_rows(digest: Any, rows: Sequence[Any]) -> bool:
    """Add plain rows to a digest; return whether all of them are plain: objects have no stable content."""
    encode = json.JSONEncoder(default=_plain).encode
    try:
        for start in range(0, len(rows), _ROWS):
            digest.update(encode(rows[start : start + _ROWS]).encode())
    except (TypeError, ValueError):
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # of torch or numpy
        return value.tolist()
    raise TypeError


def _add_table(digest: Any, data: Any) -> bool:
    """Add a table to a digest, and the indices that choose and order its rows."""
    tables = [data.data.table]
    if data._indices is not None:  # to read the rows through them is fifty times slower
        tables.append(data._indices.table)
    for table in tables:
        digest.update(repr(table.column_names).encode())
        for start in range(0, len(table), _ROWS):
            for column in table.slice(start, _ROWS).columns:
                _add_array(digest, column.combine_chunks())
    return True


def _add_array(digest: Any, array: Any) -> None:
    """Add the values of an Arrow array, however its buffers are cut."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import compute, types

    if isinstance(array, pyarrow.ChunkedArray):  # of an extension type, in some versions
        array = pyarrow.concat_arrays(array.chunks) if array.num_chunks else pyarrow.array([], array.type)
    kind = array.type
    digest.update(f"{kind} {len(array)} {array.null_count}".encode())
    if array.null_count:
        digest.update(compute.is_null(array).to_numpy(zero_copy_only=False).tobytes())
        array = array.drop_null()
    if types.is_list(kind) or types.is_large_list(kind):
        digest.update(compute.list_value_length(array).to_numpy(zero_copy_only=False).tobytes())
        _add_array(digest, array.flatten())
    elif types.is_struct(kind):
        for field in array.flatten():
            _add_array(digest, field)
    elif types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        digest.update(array.to_numpy(zero_copy_only=False).tobytes())
    else:
        digest.update(repr(array.to_pylist()).encode())
