"""Prepare the peers that `fineprune bench` times: one function per peer makes it ready to run one batch.

Each gets the same weights, the same inputs and the same number of threads. A peer that cannot run the model
raises any exception; the bench lists it and continues.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fineprune._extras import absent
from fineprune._files import staged
from fineprune.checkpoint.export import quiet_exporters, write_graph
from fineprune.errors import FinepruneError
from fineprune.inference import fallback
from fineprune.inference.accelerate import Dtype, accelerate
from fineprune.inference.bench.ctranslate2_peer import encoder_in_ctranslate2
from fineprune.inference.bench.graphs import onnx_call, openvino_call, openvino_core
from fineprune.inference.bench.llama_cpp_peer import encoder_in_llama_cpp
from fineprune.inference.linear_module import SparseLinear
from fineprune.inference.weights import is_replaceable, linear_of, places
from fineprune.pruning.targets import is_linear

Run = Callable[[], Mapping[str, Any]]
"""One answer to the batch: each output's name and its array."""

CALIBRATION = 8  # random batches from which nncf learns the ranges of the activations


class Job(NamedTuple):
    """The model and the inputs that a peer runs."""

    model: Any
    """In torch, eager, float32; shared by the peers, which do not change it."""
    inputs: dict[str, Tensor]
    threads: int
    scratch: Path
    """A folder for exports, which several peers read."""


class Peer(NamedTuple):
    """A peer: how to build it, the relative error above which it is wrong, the packages it needs."""

    build: Callable[[Job], Run]
    tolerance: float
    needs: tuple[str, ...] = ()


def missing(peer: Peer) -> str | None:
    """Return why a peer cannot be tried: packages that are not installed; None if it can."""
    names = absent(peer.needs)
    return f"{', '.join(names)} not installed" if names else None


def run_torch(job: Job) -> Run:
    """Run the model as it is."""
    return _model_run(job.model, job.inputs)


def run_compiled(job: Job) -> Run:
    """Run the model by torch.compile with its defaults, for exactly these shapes."""
    torch._dynamo.reset()  # the limit of recompilations counts those of other models as well
    return _model_run(torch.compile(job.model, dynamic=False), job.inputs)


def run_engine(dtype: Dtype) -> Callable[[Job], Run]:
    """Run the model in the sparse engine, by `accelerate`."""

    def build(job: Job) -> Run:
        return _model_run(accelerate(copy.deepcopy(job.model), dtype, job.threads), job.inputs)

    return build


def run_csr(job: Job) -> Run:
    """Run the model with torch's sparse matrices, which `accelerate` uses if the engine was not built."""
    if not fallback.runs_here():
        raise FinepruneError("this build of torch multiplies no CSR matrices")
    model = copy.deepcopy(job.model)
    replaced = 0
    for module, module_places in places(model).items():
        if not is_linear(module) or not is_replaceable(module, module_places):
            continue
        linear = linear_of(module)
        if linear.weight.density <= fallback.BREAK_EVEN:
            new = SparseLinear(fallback.CsrEngine(linear), torch.float32, False)
            for place in module_places:
                setattr(place.parent, place.name, new)
            replaced += 1
    if not replaced:
        raise FinepruneError(f"no layer keeps {fallback.BREAK_EVEN:.0%} or less: torch is faster dense")
    return _model_run(model, job.inputs)


def run_onnxruntime(int8: bool) -> Callable[[Job], Run]:
    """Run the exported graph in ONNX Runtime; int8 is its dynamic quantization."""

    def build(job: Job) -> Run:
        call = onnx_call(exported(job, "onnx", int8) / "model.onnx", job.threads)
        return partial(call, arrays(job.inputs))

    return build


def run_openvino(precision: str, int8: str = "") -> Callable[[Job], Run]:
    """Run the model in OpenVINO for exactly these shapes, in the precision "f32" or "bf16".

    `int8`: "weights" is what `fineprune export --int8` writes; "all" has nncf quantize the activations too,
    with ranges calibrated on random texts.
    """

    def build(job: Job) -> Run:
        core = openvino_core()
        if precision == "bf16":
            check_bfloat16(core)
        graph = core.read_model(exported(job, "openvino", int8 == "weights") / "openvino_model.xml")
        feeds = {entry.get_any_name(): job.inputs[entry.get_any_name()].numpy() for entry in graph.inputs}
        graph.reshape({name: list(feed.shape) for name, feed in feeds.items()})
        if int8 == "all":
            graph = quantized(graph, list(_random_feeds(feeds)))
        return partial(openvino_call(core, graph, precision, job.threads), feeds)

    return build


def check_bfloat16(core: Any) -> None:
    """Raise `FinepruneError` if this processor has no bfloat16 for OpenVINO."""
    offered = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in offered:
        raise FinepruneError(f"this processor has no bfloat16, only {', '.join(offered)}")


def quantized(graph: Any, samples: list[Any]) -> Any:
    """Return an OpenVINO graph with 8-bit weights and activations, by nncf; `samples` are inputs by name."""
    import nncf

    with quiet_exporters():
        return nncf.quantize(
            graph, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
        )


def run_deepsparse(job: Job) -> Run:
    """Run the ONNX graph in DeepSparse, which is no longer developed and serves only as a yardstick."""
    from deepsparse import compile_model
    from deepsparse.utils import override_onnx_input_shapes

    path = str(exported(job, "onnx", False) / "model.onnx")
    batch, length = job.inputs["input_ids"].shape
    with override_onnx_input_shapes(path, [[batch, length]] * len(job.inputs)) as fixed:
        engine = compile_model(fixed, batch_size=batch, num_cores=job.threads)
    feeds = [job.inputs[name].numpy() for name in engine.input_names]
    return lambda: dict(zip(engine.output_names, engine.run(feeds), strict=True))


def run_ctranslate2(compute_type: str) -> Callable[[Job], Run]:
    """Run the encoder in CTranslate2, and the head in torch."""

    def build(job: Job) -> Run:
        folder = job.scratch / "ctranslate2"
        return _model_run(encoder_in_ctranslate2(job.model, compute_type, job.threads, folder), job.inputs)

    return build


def run_llama_cpp(weights: Literal["F32", "Q8_0"]) -> Callable[[Job], Run]:
    """Run the encoder in llama.cpp, and the head in torch."""

    def build(job: Job) -> Run:
        texts, tokens = job.inputs["input_ids"].shape
        folder = job.scratch / "llama.cpp"
        changed = encoder_in_llama_cpp(job.model, weights, (texts, tokens), job.threads, folder)
        return _model_run(changed, job.inputs)

    return build


PEERS: dict[str, Peer] = {
    "torch": Peer(run_torch, 1e-3),
    "engine float32": Peer(run_engine("float32"), 1e-3),
    "engine bfloat16": Peer(run_engine("bfloat16"), 0.1),
    "engine int8": Peer(run_engine("int8"), 0.3),
    "torch CSR": Peer(run_csr, 1e-3),
    "torch.compile": Peer(run_compiled, 1e-3),
    "onnxruntime": Peer(run_onnxruntime(int8=False), 1e-3, ("onnxruntime",)),
    "onnxruntime int8": Peer(run_onnxruntime(int8=True), 0.3, ("onnxruntime",)),
    "OpenVINO": Peer(run_openvino("f32"), 1e-3, ("openvino",)),
    "OpenVINO bfloat16": Peer(run_openvino("bf16"), 0.1, ("openvino",)),
    "OpenVINO int8": Peer(run_openvino("f32", int8="all"), 0.3, ("openvino", "nncf")),
    "OpenVINO int8 weights": Peer(run_openvino("f32", int8="weights"), 0.3, ("openvino", "nncf")),
    "CTranslate2": Peer(run_ctranslate2("float32"), 1e-3, ("ctranslate2",)),
    "CTranslate2 int8": Peer(run_ctranslate2("int8"), 0.3, ("ctranslate2",)),
    # Its "float32" has the tanh form of gelu, from a table in float16, and keys and values in float16.
    "llama.cpp": Peer(run_llama_cpp("F32"), 0.02, ("llama_cpp", "gguf")),
    "llama.cpp Q8_0": Peer(run_llama_cpp("Q8_0"), 0.3, ("llama_cpp", "gguf")),
    "DeepSparse": Peer(run_deepsparse, 1e-3, ("deepsparse",)),
}
"""In the order of the table. The first one is what the others are compared with, in time and in answers."""


def _model_run(model: Any, inputs: dict[str, Tensor]) -> Run:
    def call() -> dict[str, Any]:
        with torch.inference_mode():
            outputs = model(**inputs)
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}

    return call


def exported(job: Job, to: Literal["onnx", "openvino"], int8: bool) -> Path:
    """Return the folder of an export, which the first peer that needs it creates."""
    folder = job.scratch / f"{to}{'-int8' * int8}"
    if not folder.is_dir():
        with staged(folder) as beside:
            beside.mkdir(parents=True)
            traced = {name: _at_least_two(value) for name, value in job.inputs.items()}
            write_graph(job.model, traced, beside, to, int8)
    return folder


def _at_least_two(value: Tensor) -> Tensor:
    """Repeat dimensions of size 1, which the exporters would take for fixed."""
    return value.repeat(2 if len(value) == 1 else 1, 2 if value.shape[1] == 1 else 1)


def arrays(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return tensors as arrays that share their memory."""
    return {name: value.numpy() for name, value in inputs.items()}


def _random_feeds(feeds: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield other texts of the same shape: the ids of each row in another order."""
    random = np.random.default_rng(0)
    for _ in range(CALIBRATION):
        yield feeds | {"input_ids": random.permuted(feeds["input_ids"], axis=1)}
