"""Well-known tasks by name: `task: mnli` is the data of GLUE, from the hub or from a folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fineprune._messages import choose, listing
from fineprune.errors import FinepruneError
from fineprune.tasks.tables import SUFFIXES, column_names

# The `task` section of each name: the columns and labels of the data set on the hub.
_GLUE = "nyu-mll/glue"
TASKS: dict[str, dict[str, Any]] = {
    "cola": {"text": "sentence", "labels": ["unacceptable", "acceptable"], "metric": "matthews"},
    "sst2": {"text": "sentence", "labels": ["negative", "positive"]},
    "mrpc": {"text": ["sentence1", "sentence2"], "labels": ["not_equivalent", "equivalent"]},
    "qqp": {"text": ["question1", "question2"], "labels": ["not_duplicate", "duplicate"]},
    "stsb": {"text": ["sentence1", "sentence2"], "metric": "pearson"},
    "mnli": {
        "text": ["premise", "hypothesis"],
        "labels": ["entailment", "neutral", "contradiction"],
        "validation_split": "validation_matched",
        "more": {"mismatched": "validation_mismatched"},
    },
    "qnli": {"text": ["question", "sentence"], "labels": ["entailment", "not_entailment"]},
    "rte": {"text": ["sentence1", "sentence2"], "labels": ["entailment", "not_entailment"]},
    "squad": {"kind": "question_answering", "hub": "rajpurkar/squad"},
    "squad_v2": {"kind": "question_answering", "hub": "rajpurkar/squad_v2", "unanswerable": True},
}

# The names of columns and files of the same data elsewhere, the usual name first.
_SINGLE = ("sentence", "text")
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"))
_MRPC = ("#1 String", "#2 String")
_LABELS = ("label", "gold_label", "is_duplicate", "Quality", "score")
_QUESTIONS = (".json", ".jsonl", ".parquet")
_TRAIN = ("train",)
_VALIDATION = ("dev", "validation", "dev_matched", "validation_matched")
_MISMATCHED = ("dev_mismatched", "validation_mismatched")


def expand(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ordinary `task` section for a `name`; any setting beside the name wins.

    The data are the hub's; or those of the folder `data_dir`, whose files are named `train` and `dev`
    or `validation`; or the files `train` and `validation`.

    Raises:
        FinepruneError: an unknown name, or a folder without the files.
    """
    given = dict(values)
    name, folder = given.pop("name"), given.pop("data_dir", None)
    choose(name, TASKS, "task.name")
    usual: dict[str, Any] = {"kind": "classification", "hub": _GLUE, "subset": name} | TASKS[name]
    if usual["kind"] != "classification":
        del usual["subset"]
    if given.get("kind", usual["kind"]) != usual["kind"]:
        raise FinepruneError(
            f"task: kind is {given['kind']!r} but {name} is {usual['kind']!r}; leave kind out"
        )
    files = {key: given[key] for key in ("train", "validation") if given.get(key) is not None}
    if folder is not None:
        if "hub" in given:
            raise FinepruneError(f"task: data_dir is {folder!r} and hub is {given['hub']!r}; give one")
        files = _files(name, folder, usual) | files
    if files:
        for key in ("hub", "subset", "validation_split", "more"):
            usual.pop(key, None)
        if usual["kind"] == "classification":
            usual |= _columns(str(files.get("train") or files["validation"]), usual["text"])
    return usual | files | given


def _files(name: str, folder: Any, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data files of a folder."""
    place = Path(str(folder)).expanduser()
    if not os.path.isdir(place):
        raise FinepruneError(
            f"task: data_dir is {str(folder)!r}, which is not a folder; it should hold the files train and "
            f"dev of {name}. Without data_dir the data come from the hub ({usual['hub']})"
        )
    questions = usual["kind"] == "question_answering"
    suffixes = _QUESTIONS if questions else SUFFIXES
    version = "-v2.0" if usual.get("unanswerable") else "-v1.1"  # in the names of SQuAD's own files
    files: dict[str, Any] = {}
    for key, usual_stems in (("train", _TRAIN), ("validation", _VALIDATION)):
        stems = (*usual_stems, usual_stems[0] + version) if questions else usual_stems
        path = _file(place, stems, suffixes)
        if path is None:
            names = sorted(path.name for path in place.iterdir())
            wanted = f"{stems[0]}{'|'.join(suffixes)}" + f" (or {stems[-1]})" * questions
            raise FinepruneError(f"{folder}: no {wanted} for {name}; it has {listing(names)}")
        files[key] = path
    mismatched = _file(place, _MISMATCHED, suffixes) if name == "mnli" else None
    return files if mismatched is None else files | {"more": {"mismatched": mismatched}}


def _file(place: Path, stems: Sequence[str], suffixes: Sequence[str]) -> str | None:
    """Return the one file with the first stem that exists; names from the hub end in `-00000-of-00001`."""
    for stem in stems:
        names = [f"{stem}{end}{suffix}" for end in ("", "-00000-of-00001") for suffix in suffixes]
        paths = [place / name for name in names if (place / name).is_file()]
        if len(paths) > 1:
            raise FinepruneError(
                f"{place}: holds {listing(path.name for path in paths)}; say which with train and validation"
            )
        if paths:
            return str(paths[0])
    return None


def _columns(path: str, text: str | Sequence[str]) -> dict[str, Any]:
    """Return the settings for the columns of text and label in a file, where their names are known."""
    header = column_names(Path(path))
    settings: dict[str, Any] = {}
    usual = (text,) if isinstance(text, str) else tuple(text)
    others: tuple[tuple[str, ...], ...] = (
        (*_PAIRS, _MRPC) if len(usual) == 2 else tuple((n,) for n in _SINGLE)
    )
    for columns in (usual, *others):
        if set(columns) <= set(header):
            settings["text"] = columns[0] if len(columns) == 1 else list(columns)
            break
    label = next((name for name in _LABELS if name in header), None)
    return settings if label is None else settings | {"label": label}
