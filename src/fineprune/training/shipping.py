"""From the folder of a run to what is shipped: a compact model, a delta, plain zeros, another runtime."""

import json
from pathlib import Path
from typing import Any

from fineprune._files import staged
from fineprune.checkpoint import foreign, packing, vocabulary
from fineprune.checkpoint.compact import Compact, check_place, save_compact
from fineprune.checkpoint.delta import save_delta
from fineprune.checkpoint.export import Exported, export_model
from fineprune.checkpoint.loading import load, to_dense
from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.summary import summary
from fineprune.training.run import model_place, quiet


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
    recognised by its keys; `method` and `threshold` are for those (`import_checkpoint`).
    """
    folder, out = Path(folder), Path(out)
    check_place(out)
    with quiet():
        model, tokenizer = open_folder(folder, method, threshold)
        if texts is not None:
            if tokenizer is None or base is not None:
                raise FinepruneError(f"{texts}: only a whole model with a tokenizer can lose vocabulary")
            model, tokenizer = vocabulary.shrink_vocabulary(model, tokenizer, _lines(texts))
        if base is not None:
            if embeddings != "keep":
                raise FinepruneError(
                    f"embeddings={embeddings!r}: a delta takes the base's; leave embeddings out"
                )
            return save_delta(model, out, base, tokenizer, values)
        about = _about(folder)
        command = f"fineprune compact {folder.name} {out.name} --values {values} --embeddings {embeddings}"
        compact = save_compact(
            model,
            out,
            tokenizer,
            values,
            embeddings,
            scores=about.get("scores"),
            command=command,
            config=about.get("pruning"),
        )
    return compact


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
            if tokenizer is not None:
                tokenizer.save_pretrained(staging)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return Compact(out, size, size, density, 0.0)


def export_folder(folder: str | Path, out: str | Path, to: Any, int8: bool = False) -> Exported:
    """Export the model of a run or model folder for another runtime (`export_model`)."""
    with quiet():
        model, tokenizer = open_folder(Path(folder))
        return export_model(model, tokenizer, Path(out), to, int8)


def open_folder(folder: Path, method: str | None = None, threshold: float | None = None) -> tuple[Any, Any]:
    """Model, and its tokenizer or image processor, if it has one."""
    from transformers import AutoImageProcessor, AutoTokenizer

    place = model_place(folder)
    if method is not None or threshold is not None or foreign.is_foreign(place):
        model = foreign.import_checkpoint(place, method, threshold)
    else:
        model = load(place)
    kinds = {"tokenizer_config.json": AutoTokenizer, "preprocessor_config.json": AutoImageProcessor}
    for file, kind in kinds.items():
        if (place / file).is_file():
            return model, kind.from_pretrained(place, local_files_only=True)
    return model, None


def _about(folder: Path) -> dict[str, Any]:
    """What a run's results say, for fineprune.json."""
    path = folder / "results.json"
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        pruning = results["recipe"]["pruning"]
        return {
            "scores": results["scores"],
            "pruning": None if pruning is None else PruningConfig.from_dict(pruning),
        }
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise FinepruneError(f"{path}: not the results of a run ({error})") from error


def _lines(path: str | Path) -> list[str | tuple[str, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FinepruneError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    return [line for line in text.splitlines() if line.strip()]
