"""Run exported graphs in ONNX Runtime and OpenVINO. No torch: its memory would count as theirs."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Call = Callable[[Any], Mapping[str, Any]]
"""From arrays of inputs, by name or in order, to arrays of outputs by name.

Names that the graph does not have are ignored."""


def onnx_call(path: Path, threads: int) -> Call:
    """Open a graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    return lambda given: dict(
        zip(outputs, session.run(outputs, {name: given[name] for name in inputs}), strict=True)
    )


def openvino_core() -> Any:
    """Return OpenVINO's core, and keep it from reporting its use."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def openvino_call(core: Any, graph: Any, precision: str, threads: int) -> Call:
    """Compile an OpenVINO graph, or the file of one, in the precision "f32" or "bf16".

    The arrays of one answer are overwritten by the next.
    """
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = core.compile_model(graph, "CPU", settings)
    inputs = [entry.get_any_name() for entry in compiled.inputs if entry.names]
    request = compiled.create_infer_request()
    outputs = request.model_outputs
    names = [output.get_any_name() if output.names else str(at) for at, output in enumerate(outputs)]

    def call(given: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
        feeds = {name: given[name] for name in inputs} if isinstance(given, Mapping) else given
        results = request.infer(feeds, share_inputs=True, share_outputs=True)
        return {name: results[output] for name, output in zip(names, outputs, strict=True)}

    return call
