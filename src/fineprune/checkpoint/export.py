"""Export to ONNX or OpenVINO by transformers' own exporters, and compare the outputs with PyTorch's.

Zeros are stored in full: neither format stores them in fewer bytes. `int8` is ONNX Runtime's dynamic
quantization (weights when written, activations when run), or NNCF's compression of the weights alone.
"""

import io
import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from fineprune._extras import require
from fineprune._files import refused_write, staged
from fineprune._messages import choose, one_line
from fineprune._padding import ensure_padding
from fineprune.errors import FinepruneError
from fineprune.pruning.finalizing import masked_modules
from fineprune.pruning.targets import refuse_accelerated, refuse_not_finite
from fineprune.pruning.wrapped import transformer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOLERANCE = 1e-3
_PACKAGES = {
    "onnx": ("transformers.exporters", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("transformers.exporters", "openvino"),
}
_SENTENCES = ("A short film.", "It is longer than it should be, and better than it looks.")


class Exported(NamedTuple):
    """A finished export."""

    path: Path
    bytes: int
    """Of graph and weights."""
    difference: float
    """The largest difference of an output from the PyTorch model's, as a fraction of the largest output."""


def export_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    out: Path,
    to: Literal["onnx", "openvino"],
    int8: bool = False,
    files: Sequence[Path] = (),
) -> Exported:
    """Write `model` for another runtime into the folder `out`, for batches and texts of any size.

    The folder holds `model.onnx` with its weights beside it, or `openvino_model.xml` and `.bin`;
    `config.json`, the tokenizer, and the files that transformers needs to load it (`ExportedModel`). The
    written model is loaded and run at float32 on inputs of other sizes than it was traced with. As before
    training, model and tokenizer are given a padding token where they have none.

    Args:
        model: Finalized, float32, on the CPU and in evaluation mode.
        tokenizer: The model's; None for a model of images.
        out: Missing or empty.
        to: The format.
        int8: Quantize to 8 bits.
        files: Other files and folders to copy into the folder.

    Raises:
        FinepruneError: leaving nothing at `out`, when a package of `fineprune[export]` is missing, `out` is
            not empty or cannot be written, the model is not as described or of a kind that cannot be
            exported, and when its outputs are not finite or, without `int8`, further than 0.001 from
            PyTorch's.
    """
    choose(to, _PACKAGES, "to")
    place = Path(out).resolve()
    if os.path.isfile(place) or (os.path.isdir(place) and any(place.iterdir())):
        raise FinepruneError(f"{out}: exists, and is not an empty folder; name another for the export")
    _check_packages(to, int8)
    _check_model(model)
    traced, *others = _inputs(model, tokenizer)
    with staged(place) as beside:
        try:
            beside.mkdir(parents=True)
            with quiet_exporters():
                _write(model, traced, beside, to, int8)
                difference = _difference(model, others, beside, to)
        except Exception as error:  # some models make the exporter or the runtime raise anything
            if refused_write(error) is not None:
                raise
            kind = type(model).__name__
            raise FinepruneError(
                f"{kind}: export to {to} failed, try the other: {one_line(error)}"
            ) from error
        if not difference < (math.inf if int8 else _TOLERANCE):  # nan too
            raise FinepruneError(
                f"{to}: the outputs differ from PyTorch's by {difference:.2g} of the largest, allowed: "
                f"{'any finite number' if int8 else _TOLERANCE}; nothing was written, try the other format"
            )
        size = sum(path.stat().st_size for path in beside.iterdir() if "model." in path.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        for path in files:
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, beside / path.name)
    return Exported(Path(out), size, difference)


def write_graph(
    model: "PreTrainedModel",
    inputs: dict[str, Any],
    folder: Path,
    to: Literal["onnx", "openvino"],
    int8: bool,
) -> None:
    """Write the graph as `export_model` does into an existing folder, without comparing outputs.

    `inputs` are the example to trace, with a batch and a length of 2 or more. Raises `FinepruneError` for a
    missing package, and whatever the exporter raises.
    """
    _check_packages(to, int8)
    with quiet_exporters():
        _write(model, inputs, folder, to, int8)


def _check_packages(to: str, int8: bool) -> None:
    needed = (*_PACKAGES[to], "nncf") if to == "openvino" and int8 else _PACKAGES[to]
    require("export", f"export to {to}", needed)


def _check_model(model: "PreTrainedModel") -> None:
    if transformer_of(model) is not model:
        raise FinepruneError(
            f"{type(model).__name__}: export its transformer, model.transformers_model, or save it and run "
            "`fineprune export` on the folder, which keeps the pooling beside the graph"
        )
    if any(True for _ in masked_modules(model)):
        raise FinepruneError("this model is still being pruned: finalize it before the export")
    refuse_accelerated(model, "export it before accelerate, or load it again without")
    if model.training:
        raise FinepruneError("this model is in training mode: model.eval() before the export")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise FinepruneError(
                f"{name} is {parameter.dtype} on {parameter.device}, allowed: torch.float32 on cpu; "
                "model.float().cpu() before the export"
            )
    refuse_not_finite(model)


def _inputs(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None") -> list[dict[str, Any]]:
    """Return the inputs to trace, a batch of 2, and those to compare on: 1 and 3 texts of other lengths."""
    inputs: list[dict[str, Any]]
    if tokenizer is not None:
        ensure_padding(model, tokenizer)
        positions = getattr(model.config, "max_position_embeddings", 0) - 2  # RoBERTa's begin at 2
        length = int(min(n for n in (64, tokenizer.model_max_length, positions) if n >= 1))
        limits = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        batches = (_SENTENCES, _SENTENCES[:1], (" ".join(_SENTENCES * 8), *_SENTENCES))
        inputs = [dict(tokenizer(list(texts), **limits)) for texts in batches]
    elif model.main_input_name == "pixel_values":
        side = getattr(model.config, "image_size", 224)
        shape = (getattr(model.config, "num_channels", 3), *((side, side) if isinstance(side, int) else side))
        random = torch.Generator().manual_seed(0)
        inputs = [{"pixel_values": torch.randn(batch, *shape, generator=random)} for batch in (2, 1, 3)]
    else:
        raise FinepruneError(
            f"{type(model).__name__} takes {model.main_input_name}: give its tokenizer; only a model of "
            "pixel_values is exported without one"
        )
    if getattr(model.config, "use_cache", False):  # a classifier has no use for a decoder's cache
        inputs = [batch | {"use_cache": False} for batch in inputs]
    return inputs


def _write(model: "PreTrainedModel", inputs: dict[str, Any], folder: Path, to: str, int8: bool) -> None:
    from transformers import exporters

    quantizer = None
    if to == "onnx":
        if int8:
            # In 7 bits weights do not overflow on processors without VNNI, which add two products in 16 bits.
            dynamic = exporters.OnnxRuntimeDynamicConfig(per_channel=True, reduce_range=True)
            quantizer = exporters.OnnxRuntimeQuantizer(dynamic)
        exporter, config = exporters.OnnxExporter(), exporters.OnnxConfig(dynamic=True, quantizer=quantizer)
    else:
        # OpenVINO and NNCF report their use to Intel without asking, but work without the package for it.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        if int8:
            quantizer = exporters.NNCFOpenVINOQuantizer(exporters.NNCFWeightCompressionConfig())
        exporter = exporters.OpenVINOExporter()
        config = exporters.OpenVINOConfig(dynamic=True, quantizer=quantizer)
    own = [module for module in model.modules() if "forward" not in vars(module)]
    try:
        exporter.export(model, dict(inputs), config).save_pretrained(folder)
    finally:
        for module in own:  # transformers leaves one on the model, bound to it: a copy would run the original
            vars(module).pop("forward", None)


@torch.no_grad()
def _difference(model: "PreTrainedModel", batches: list[dict[str, Any]], folder: Path, to: str) -> float:
    """Return the largest difference of any output over that output's largest absolute value; may be nan."""
    from transformers.exporters import ExportedModel

    # Where the CPU has bfloat16, OpenVINO would compute in it: that error is the machine's, not the file's.
    options = {"config": {"INFERENCE_PRECISION_HINT": "f32"}} if to == "openvino" else {}
    exported = ExportedModel.from_pretrained(folder, device="cpu", **options)
    differences = []
    for batch in batches:
        ours, theirs = model(**batch), exported(**batch)
        mask = batch.get("attention_mask", torch.empty(0)).bool()
        for name, output in ours.items():
            if torch.is_tensor(output):
                moved = (theirs[name] - output).abs()
                if moved.ndim == 3 and moved.shape[:2] == mask.shape:  # an output per token: skip padding
                    moved, output = moved[mask], output[mask]
                differences.append(moved.max() / output.abs().max().clamp(min=1e-12))
    return float(torch.stack(differences).max())


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Suppress what the exporters print, log and warn about: versions and internals that no user can act on.

    Nothing is lost: errors are raised, and the outputs are compared.
    """
    level, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers  # onnxruntime's quantization adds one
