"""Keep windows on disk for later runs: making those of all of SQuAD takes a minute."""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune._files import WriteError, staged_file
from fineprune._messages import one_line
from fineprune.tasks.questions.context_windows import ContextWindows, limits, make_windows
from fineprune.tasks.questions.squad import Questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger("fineprune")
_VERSION = 1  # of what the files hold; another number, and none of the old is read
_WORTH = 1_000  # questions; fewer are made in less than a second


def cached_windows(
    read: Questions, tokenizer: "PreTrainedTokenizerBase", max_length: int, stride: int | None = None
) -> ContextWindows:
    """Return the windows of `make_windows`, from the cache of `datasets` (HF_DATASETS_CACHE) if possible.

    A file's name is a hash of all that windows depend on: the questions, contexts and answers, the
    tokenizer, the lengths. A file that cannot be read is written again; if it cannot be written, a warning
    is logged.
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
        (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_input_names),
        (tokenizer.bos_token_id, tokenizer.cls_token_id),
        read.questions,
        read.contexts,
        read.answers,
    )
    # Truncation and padding are settings of the last call, not of the tokenizer.
    settings = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    hashed = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in parts:
        hashed.update(json.dumps(part).encode())
    return hashed.hexdigest()[:32]


def _load(path: Path) -> ContextWindows | None:
    """Return the windows of a file, memory-mapped; None if there is no file, or a damaged one."""
    import pyarrow  # type: ignore[import-untyped]

    try:
        table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        counts = json.loads(table.schema.metadata[b"fineprune"])
        return ContextWindows(table, counts["cut"], counts["lost"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own are of these
        _log.warning("%s: cannot be read (%s), so it is written again", path, one_line(error))
        return None


def _save(windows: ContextWindows, path: Path) -> None:
    import pyarrow

    counts = {b"fineprune": json.dumps({"cut": windows.cut, "lost": windows.lost}).encode()}
    table = windows.table.replace_schema_metadata(counts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as beside, pyarrow.ipc.new_file(str(beside), table.schema) as file:
            file.write_table(table)
    except (OSError, WriteError) as error:
        _log.warning("%s: the windows cannot be kept (%s)", path, one_line(error))
