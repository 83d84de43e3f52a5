"""Prepare one model for each runtime: the files that it would be served from, and a function that answers."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fineprune._extras import absent
from fineprune.checkpoint.packing import Packing
from fineprune.inference.bench import peers, resident_memory
from fineprune.inference.bench.graphs import onnx_call, openvino_call, openvino_core
from fineprune.pruning.summary import summary
from fineprune.study.frontier.points import BASE
from fineprune.training.run.convert import compact_folder
from fineprune.training.run.results import weight_bytes
from fineprune_runtime.codec import DENSE_FROM

Inputs = Mapping[str, Tensor]
Answer = Callable[[Inputs], Mapping[str, Any]]
"""From the inputs of one text to arrays of logits by name."""

PACKINGS = {
    "float32": Packing("float32", "keep"),
    "bfloat16": Packing("bfloat16", "float16"),
    "int8": Packing("int8", "int8"),
}
"""How a model is packed for the engine, by the type it computes in."""

_CALIBRATION = 64  # texts from which nncf learns the ranges of the activations


class Subject:
    """A model that the runtimes get.

    Attributes:
        run: The run.
        model: The model in torch, float32, without empty heads and neurons.
        dense: Whether it was not pruned: it has no zeros to pack.
        inputs: The texts, one each.
        threads: For all runtimes.
        scratch: A folder for files.
    """

    def __init__(
        self, run: Path, model: Any, dense: bool, inputs: list[Inputs], threads: int, scratch: Path
    ) -> None:
        self.run, self.model, self.dense = run, model, dense
        self.inputs, self.threads, self.scratch = inputs, threads, scratch

    def packed(self, dtype: str) -> Path:
        """Return the folder that would be served: compact, or the run's where packing would save nothing."""
        if dtype == "float32" and (self.dense or summary(self.model).density >= DENSE_FROM):
            return self.run / "model"
        folder = self.scratch / f"compact-{dtype}"
        if not folder.is_dir():
            compact_folder(self.run, folder, PACKINGS[dtype])
        return folder

    @cached_property
    def job(self) -> peers.Job:
        """The model as the exporters of `fineprune bench` take it."""
        return peers.Job(self.model, dict(self.inputs[0]), self.threads, self.scratch)


class Prepared(NamedTuple):
    """A model that is ready in a runtime."""

    answer: Answer
    bytes: int
    way: str
    """How `resident_memory` loads it."""
    source: Path


class Runtime(NamedTuple):
    """A runtime: how it gets a model, and what it consists of."""

    prepare: Callable[[Subject], Prepared]
    packages: tuple[str, ...]
    """Whose versions decide its speed."""
    needs: tuple[str, ...] = ()
    """The modules that must be installed."""
    exact: bool = False
    """It computes in float32: other answers than torch's are a fault."""
    of_dense: bool = False
    """It gains nothing from zeros, so that only dense models and those with smaller matrices are run."""


def missing(name: str) -> list[str]:
    """Return the modules that a runtime needs and that are not installed."""
    return absent(RUNTIMES[name].needs)


def _torch(subject: Subject) -> Prepared:
    folder = subject.packed("float32")

    def answer(inputs: Inputs) -> dict[str, Any]:
        with torch.inference_mode():
            outputs = subject.model(**inputs)
        return {name: value.numpy() for name, value in outputs.items() if isinstance(value, Tensor)}

    return Prepared(answer, weight_bytes(folder) or 0, resident_memory.DENSE, folder)


def _engine(dtype: str, subject: Subject) -> Prepared:
    from fineprune_runtime import loading
    from fineprune_runtime.predictor import AnswerPredictor

    folder = subject.packed(dtype)
    predictor = loading.load(folder, dtype, subject.threads)
    spans = isinstance(predictor, AnswerPredictor)

    def answer(inputs: Inputs) -> dict[str, Any]:
        given = peers.arrays(inputs)
        logits = predictor.network(given["input_ids"], given["attention_mask"], given.get("token_type_ids"))
        if spans:
            return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
        return {"logits": logits}

    return Prepared(answer, weight_bytes(folder) or 0, f"runtime {dtype}", folder)


def _onnxruntime(int8: bool, subject: Subject) -> Prepared:
    path = peers.exported(subject.job, "onnx", int8) / "model.onnx"
    call = onnx_call(path, subject.threads)
    return Prepared(_by_arrays(call), _graph_bytes(path.parent), "onnxruntime", path)


def _openvino(precision: str, int8: bool, subject: Subject) -> Prepared:
    core = openvino_core()
    if precision == "bf16":
        peers.check_bfloat16(core)
    path = peers.exported(subject.job, "openvino", False) / "openvino_model.xml"
    if int8:
        path = _quantized(core, path, subject)
    call = openvino_call(core, path, precision, subject.threads)
    return Prepared(_by_arrays(call), _graph_bytes(path.parent), f"OpenVINO {precision}", path)


def _quantized(core: Any, path: Path, subject: Subject) -> Path:
    """Write the graph with 8-bit weights and activations, calibrated on the task's texts."""
    import openvino

    graph = core.read_model(path)
    names = [entry.get_any_name() for entry in graph.inputs]
    every = max(1, len(subject.inputs) // _CALIBRATION)
    samples = [
        {name: inputs[name].numpy() for name in names} for inputs in subject.inputs[::every][:_CALIBRATION]
    ]
    place = subject.scratch / "openvino-int8-all" / path.name
    place.parent.mkdir()
    openvino.save_model(peers.quantized(graph, samples), place, compress_to_fp16=False)
    return place


def _by_arrays(call: Callable[[Any], Mapping[str, Any]]) -> Answer:
    return lambda inputs: call(peers.arrays(inputs))


def _graph_bytes(folder: Path) -> int:
    """Return the bytes of an exported graph and its weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if "model." in path.name)


_ONNX, _OPENVINO = ("onnxruntime", "torch"), ("openvino", "torch")
_NEED_ONNX, _NEED_OPENVINO = ("onnx", "onnxscript", "onnxruntime"), ("openvino",)

RUNTIMES: dict[str, Runtime] = {
    BASE: Runtime(_torch, ("torch", "transformers"), exact=True),
    "engine float32": Runtime(partial(_engine, "float32"), ("fineprune-runtime",), exact=True),
    "engine bfloat16": Runtime(partial(_engine, "bfloat16"), ("fineprune-runtime",)),
    "engine int8": Runtime(partial(_engine, "int8"), ("fineprune-runtime",)),
    "onnxruntime": Runtime(partial(_onnxruntime, False), _ONNX, _NEED_ONNX, True, True),
    "onnxruntime int8": Runtime(partial(_onnxruntime, True), _ONNX, _NEED_ONNX, of_dense=True),
    "OpenVINO": Runtime(partial(_openvino, "f32", False), _OPENVINO, _NEED_OPENVINO, True, True),
    "OpenVINO bfloat16": Runtime(partial(_openvino, "bf16", False), _OPENVINO, _NEED_OPENVINO, of_dense=True),
    "OpenVINO int8": Runtime(
        partial(_openvino, "f32", True), (*_OPENVINO, "nncf"), (*_NEED_OPENVINO, "nncf"), of_dense=True
    ),
}
"""In the order of the tables. The engine is fineprune_runtime, without torch."""


def commands(runtime: str, run: Path, dense: bool) -> list[str]:
    """Return how to make what was measured of a run in a runtime: commands, or a line of Python."""
    name, _, dtype = runtime.partition(" ")
    if name == "engine":
        packing, folder = PACKINGS[dtype], f"{run}/model"
        lines = []
        if not dense:
            folder = "small"
            options = f"--values {packing.values} --embeddings {packing.embeddings}"
            lines = [f"fineprune compact {run} {folder} {options}"]
        return [*lines, f'python: fineprune_runtime.load("{folder}", dtype="{dtype}")']
    if name == BASE:
        return [f"{run}/model as it is" if dense else f"fineprune compact {run} small"]
    if name == "onnxruntime":
        return [f"fineprune export {run} exported --to onnx{' --int8' if dtype else ''}"]
    lines = [f"fineprune export {run} exported --to openvino"]
    if dtype == "int8":
        lines.append(
            f"python: nncf.quantize(...) on {_CALIBRATION} of your texts, for weights and activations"
        )
    elif dtype:
        lines.append("python: compile_model(..., {'INFERENCE_PRECISION_HINT': 'bf16'})")
    return lines
