"""From the folder of a run to what is shipped: a compact model, a delta, plain zeros, another runtime."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from fineprune._files import staged
from fineprune._messages import one_line
from fineprune.checkpoint import legacy_import, packing, vocabulary
from fineprune.checkpoint.compact import (
    ABOUT,
    Compact,
    check_place,
    compare_outputs,
    compare_weights,
    save_compact,
)
from fineprune.checkpoint.delta import save_delta
from fineprune.checkpoint.export import Exported, export_model
from fineprune.checkpoint.loading import load, to_dense
from fineprune.checkpoint.model_folder import model_place
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.summary import summary
from fineprune.training.run.train import quiet

_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "*.model")


class _Beside(NamedTuple):
    """What lies beside the weights in a model folder, to be written with them.

    The settings of an image or sound processor are copied: to load them takes packages that the
    model itself does not need.
    """

    tokenizer: Any
    place: Path

    def save_pretrained(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (self.place / name).is_file():
                shutil.copyfile(self.place / name, folder / name)


def compact_folder(
    folder: str | Path,
    out: str | Path,
    values: packing.Values = "float32",
    embeddings: packing.Embeddings = "keep",
    base: str | None = None,
    texts: str | Path | None = None,
    method: str | None = None,
    threshold: float | None = None,
) -> Compact:
    """Pack the model of a run or model folder into `out`.

    `base` stores what differs from it (`save_delta`); `texts`, a file with a text a line, drops the
    vocabulary that it never uses. A checkpoint of the original scripts or of nn_pruning is
    recognized by its keys; `method` and `threshold` are for those (`import_checkpoint`).
    """
    folder, out = Path(folder), Path(out)
    check_place(out)
    with quiet():
        model, tokenizer = open_folder(folder, method, threshold)
        if texts is not None:
            if tokenizer is None or base is not None:
                raise FinepruneError(f"{texts}: only a whole model with a tokenizer can lose vocabulary")
            model, tokenizer = vocabulary.shrink_vocabulary(model, tokenizer, _lines(texts))
        command = f"fineprune compact {folder.resolve().name} {out.resolve().name}"
        asked: dict[str, Any] = {"values": values, "embeddings": embeddings, "base": base and Path(base).name}
        asked |= {"vocabulary": texts and Path(texts).name, "method": method, "threshold": threshold}
        command += "".join(f" --{name} {value}" for name, value in asked.items() if value is not None)
        about = _about(folder) | {"command": command}
        beside = _Beside(tokenizer, model_place(folder))
        if base is None:
            return save_compact(model, out, beside, values, embeddings, **about)
        if embeddings != "keep":
            raise FinepruneError(f"embeddings={embeddings!r}: a delta takes the base's; leave it out")
        about.pop("dense_scores", None)
        return save_delta(model, out, base, beside, values, **about)


def dense_folder(
    folder: str | Path, out: str | Path, method: str | None = None, threshold: float | None = None
) -> Compact:
    """Write the model of any folder with its zeros in place, for programs that know no fineprune."""
    folder, out = Path(folder), Path(out)
    check_place(out)
    with quiet():
        model, tokenizer = open_folder(folder, method, threshold)
        with staged(out) as staging:
            density = summary(model).density
            to_dense(model).save_pretrained(staging)
            _Beside(tokenizer, model_place(folder)).save_pretrained(staging)
            kind: Any = type(model)
            reloaded = kind.from_pretrained(staging, dtype=model.dtype, local_files_only=True)
            compare_weights(model, reloaded, "float32", "keep")
            changed = compare_outputs(model, reloaded, None, exact=True)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return Compact(out, size, size, density, changed)


def export_folder(folder: str | Path, out: str | Path, to: Any, int8: bool = False) -> Exported:
    """Export the model of a run or model folder for another runtime (`export_model`)."""
    with quiet():
        model, tokenizer = open_folder(Path(folder))
        done = export_model(model, tokenizer, Path(out), to, int8)
        _Beside(None, model_place(Path(folder))).save_pretrained(done.path)
        return done


def open_folder(folder: Path, method: str | None = None, threshold: float | None = None) -> tuple[Any, Any]:
    """Model, and its tokenizer if it has one."""
    from transformers import AutoTokenizer

    place = model_place(folder)
    with quiet():
        if method is not None or threshold is not None or legacy_import.is_foreign(place):
            model = legacy_import.import_checkpoint(place, method, threshold)
        else:
            model = load(place)
        if not any(any(place.glob(name)) for name in _TOKENIZERS):
            return model, None
        try:  # by the model's config: that of the folder may name a model type of another program
            return model, AutoTokenizer.from_pretrained(place, config=model.config, local_files_only=True)
        except Exception as error:  # by file and by version
            raise FinepruneError(f"{place}: cannot load the tokenizer ({one_line(error)})") from error


def _about(folder: Path) -> dict[str, Any]:
    """What the results of a run, or an earlier packing, say of the model: arguments of `save_compact`."""
    path = folder / "results.json"
    packed = model_place(folder) / ABOUT
    if not path.is_file():
        if not packed.is_file():
            return {}
        path = packed
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        pruning = said["pruning"] if path == packed else said["recipe"]["pruning"]
        return {
            "scores": said["scores"] and dict(said["scores"]),
            "dense_scores": said.get("dense_scores"),
            "config": None if pruning is None else PruningConfig.from_dict(pruning),
        }
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise FinepruneError(f"{path}: not the results of a run ({one_line(error)})") from error


def _lines(path: str | Path) -> list[str | tuple[str, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FinepruneError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    lines: list[str | tuple[str, str]] = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise FinepruneError(f"{path}: no text in it; one a line is expected")
    return lines
