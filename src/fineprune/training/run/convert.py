"""Convert the model of a run or model folder: to a compact model, a delta, plain zeros, another runtime."""

import json
import math
import re
import shutil
import tempfile
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from fineprune._files import staged
from fineprune._messages import one_line
from fineprune._text_files import read_lines
from fineprune._transformers_output import quiet
from fineprune.checkpoint import vocabulary
from fineprune.checkpoint.compact import (
    ABOUT,
    Compact,
    check_place,
    compare_outputs,
    compare_weights,
    write_compact,
)
from fineprune.checkpoint.delta import write_delta
from fineprune.checkpoint.export import Exported, export_model
from fineprune.checkpoint.loading import open_model, to_dense
from fineprune.checkpoint.model_files import read_json
from fineprune.checkpoint.model_folder import model_place
from fineprune.checkpoint.packing import Packing
from fineprune.checkpoint.provenance import Provenance
from fineprune.checkpoint.sentence_files import sentence_files_of
from fineprune.checkpoint.shapes import full_size
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.summary import summary
from fineprune.training.run.dense_counterpart import dense_scores
from fineprune.training.run.results import read_results
from fineprune_runtime import manifest

CALIBRATION = "calibration.json"
"""In a model folder: how `fineprune calibrate` cut it, and what it scored."""

_TABLE = re.compile(r"embed|\bshared\.|\bwte\.")  # what models call their tables of words


class Companions(NamedTuple):
    """Write the files that belong beside the weights of a model folder; acts as a tokenizer.

    The settings of an image or sound processor are copied: loading them takes packages that the model itself
    does not need. So are the files of Sentence Transformers.
    """

    tokenizer: Any
    place: Path

    def save_pretrained(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        for path in _processors(self.place):
            shutil.copyfile(path, folder / path.name)
        if (files := sentence_files_of(self.place)) is not None:
            files.copy(folder)


def _processors(place: Path) -> list[Path]:
    """Return the files in a model folder that hold the settings of an image or sound processor."""
    names = ("preprocessor_config.json", "processor_config.json")
    return [place / name for name in names if (place / name).is_file()]


def compact_folder(
    folder: str | Path,
    out: str | Path,
    packing: Packing | None = None,
    base: str | None = None,
    texts: str | Path | None = None,
    method: str | None = None,
    threshold: float | None = None,
) -> Compact:
    """Write a compact copy of a run, model folder or older checkpoint, storing only non-zero weights.

    Args:
        folder: A run, a model, or a checkpoint of the original scripts or of nn_pruning, recognized by
            its keys.
        out: The folder to write.
        packing: The types to pack with; None: exact.
        base: Store only the difference from this model, as `save_delta` does.
        texts: A file with one text per line; the vocabulary that it never uses is dropped.
        method: The pruning method of an older program's checkpoint; see `import_checkpoint`.
        threshold: The final threshold of such a checkpoint.
    """
    folder, out, packing = Path(folder), Path(out), packing or Packing()
    check_place(out, None if packing.is_exact and texts is None else folder)
    with quiet():
        model, tokenizer, place = open_model(folder, method=method, threshold=threshold)
        if texts is not None:
            if tokenizer is None or base is not None:
                raise FinepruneError(f"{texts}: only a whole model with a tokenizer can lose vocabulary")
            model, tokenizer = vocabulary.shrink_vocabulary(model, tokenizer, read_lines(texts))
        options = {
            "values": packing.values,
            "embeddings": packing.embeddings,
            "base": base and Path(base).name,
            "vocabulary": texts and Path(texts).name,
            "method": method,
            "threshold": threshold,
        }
        command = f"fineprune compact {quote(folder.resolve().name)} {quote(out.resolve().name)}"
        command += "".join(
            f" --{name} {quote(str(value))}" for name, value in options.items() if value is not None
        )
        provenance = _provenance(folder, command)
        companions = Companions(tokenizer, Path(place))
        if base is None:
            return write_compact(model, out, packing, provenance, companions)
        return write_delta(model, out, base, packing, provenance, companions)


def smaller_tables(done: Compact) -> str | None:
    """Return a line on int8 embeddings, where the tables are most of a compact model of 1 MB or more."""
    about = done.folder / ABOUT
    if not about.is_file() or json.loads(about.read_text(encoding="utf-8")).get("embeddings") != "keep":
        return None
    tables = elements = 0
    for file in done.folder.glob("*.safetensors"):
        for tensor in manifest.read(file)[1]:
            if len(tensor.shape) == 2 and _TABLE.search(tensor.name):
                tables += tensor.data.nbytes
                elements += math.prod(tensor.shape)
    if done.bytes < 10**6 or tables < done.bytes / 2:
        return None
    least = (done.bytes - tables + elements) / 1e6  # an element takes one byte then
    return (
        f"{tables / 1e6:.1f} MB of it are embeddings; with --embeddings int8 it would take about "
        f"{least:.1f} MB: score that with fineprune evaluate"
    )


def dense_folder(
    folder: str | Path, out: str | Path, method: str | None = None, threshold: float | None = None
) -> Compact:
    """Write the model of any folder with its zeros in place, for programs that do not know fineprune."""
    folder, out = Path(folder), Path(out)
    check_place(out)
    with quiet():
        model, tokenizer, place = open_model(folder, method=method, threshold=threshold)
        with staged(out) as staging:
            model = full_size(model)
            density = summary(model).density
            changed = write_plain(model, Companions(tokenizer, Path(place)), staging)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return Compact(out, size, size, density, changed)


def write_plain(model: Any, companions: Companions, folder: Path) -> float:
    """Write a model with its zeros in place, and its companions; return how far reloaded answers differ."""
    to_dense(model).save_pretrained(folder)
    companions.save_pretrained(folder)
    reloaded = type(model).from_pretrained(
        folder, dtype=model.dtype, local_files_only=True, trust_remote_code=False
    )
    if getattr(reloaded, "pooler", None) is not None and getattr(model, "pooler", reloaded) is None:
        # saved without one, so this one is random
        reloaded.pooler = None
    if hasattr(model, "sentence"):
        reloaded.sentence = model.sentence  # the pooling of a sentence encoder, which its files hold
    compare_weights(model, reloaded, Packing())
    return compare_outputs(model, reloaded, None, exact=True)


def export_folder(folder: str | Path, out: str | Path, to: Any, int8: bool = False) -> Exported:
    """Export the model of a run or model folder for another runtime (`export_model`)."""
    with quiet():
        model, tokenizer, place = open_model(folder)
        files = _processors(Path(place))
        with tempfile.TemporaryDirectory() as beside:
            if (sentences := sentence_files_of(Path(place))) is not None:
                sentences.copy(Path(beside))
                files += sorted(Path(beside).iterdir())
            return export_model(model, tokenizer, Path(out), to, int8, files)


def _provenance(folder: Path, command: str) -> Provenance:
    """Return the provenance recorded in a run's results or an earlier compact model, with a new command."""
    path = folder / "results.json"
    try:
        results = read_results(path)
    except FileNotFoundError:
        place = model_place(folder)
        files = [place / name for name in (ABOUT, CALIBRATION) if (place / name).is_file()]
        return _earlier_provenance(files[0], command) if files else Provenance(command=command)
    pruning = results["recipe"].get("pruning")
    try:
        config = None if pruning is None else PruningConfig.from_dict(pruning)
    except FinepruneError as error:
        raise FinepruneError(f"{path}: {error}") from error
    return Provenance(results["scores"], dense_scores(folder, results), command, config)


def _earlier_provenance(path: Path, command: str) -> Provenance:
    """Return the provenance in a fineprune.json or calibration.json, with a new command."""
    content = read_json(path)
    try:
        config = None if content["pruning"] is None else PruningConfig.from_dict(content["pruning"])
        return Provenance(content["scores"], content.get("dense_scores"), command, config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FinepruneError(f"{path}: not written by fineprune ({one_line(error)}); delete it") from error
