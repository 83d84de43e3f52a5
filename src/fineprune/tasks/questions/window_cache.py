"""Windows that were made before, from disk: those of all of SQuAD take a minute, and each run needs them."""

import hashlib
import json
import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune._messages import one_line
from fineprune.tasks.questions.context_windows import Windows, limits, make_windows
from fineprune.tasks.questions.squad import Questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger("fineprune")
_VERSION = 1  # of what the files hold; another number, and none of the old is read
_WORTH = 1_000  # questions; fewer are made in less than a second


def cached_windows(
    read: Questions, tokenizer: "PreTrainedTokenizerBase", max_length: int, stride: int | None = None
) -> Windows:
    """What `make_windows` makes, kept for the next time in the folder of `datasets` (HF_DATASETS_CACHE).

    A file is found by all that windows depend on: the questions, contexts and answers, the tokenizer, the
    lengths. One that cannot be read is made anew; where none can be written, that is told and no error.
    """
    import datasets

    if len(read) < _WORTH:
        return make_windows(read, tokenizer, max_length, stride)
    limit, stride = limits(tokenizer, max_length, stride)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "fineprune"
    path = folder / f"windows-{_key(read, tokenizer, max_length, stride)}.arrow"
    windows = _load(path)
    if windows is None:
        windows = make_windows(read, tokenizer, max_length, stride)
        _save(windows, path)
    else:
        windows.warn(limit)
    return windows


def _key(read: Questions, tokenizer: Any, max_length: int, stride: int) -> str:
    import tokenizers

    parts: tuple[Any, ...] = (
        (_VERSION, tokenizers.__version__, max_length, stride),
        (tokenizer.padding_side, tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.model_input_names),
        read.questions,
        read.contexts,
        read.answers,
    )
    # Its truncation and padding are set anew by each call, and not what it is.
    own = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    hashed = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
    for part in parts:
        hashed.update(json.dumps(part).encode())
    return hashed.hexdigest()[:32]


def _load(path: Path) -> Windows | None:
    """The windows of a file, which stay on disk until they are used; None for no file or half of one."""
    import pyarrow  # type: ignore[import-untyped]

    try:
        table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        told = json.loads(table.schema.metadata[b"fineprune"])
        return Windows(table, told["cut"], told["lost"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own are of these
        _log.warning("%s: cannot be read (%s), so it is made anew", path, one_line(error))
        return None


def _save(windows: Windows, path: Path) -> None:
    import pyarrow

    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    told = {b"fineprune": json.dumps({"cut": windows.cut, "lost": windows.lost}).encode()}
    table = windows.table.replace_schema_metadata(told)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pyarrow.ipc.new_file(str(beside), table.schema) as file:
                file.write_table(table)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s: the windows cannot be kept (%s)", path, one_line(error))
