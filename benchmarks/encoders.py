"""Encoders with random weights and masks, and who runs them: what benchmarks/engine.py measures.

Embeddings and heads are left out, since nobody prunes those: an encoder is linear layers, attention, norms
and GELU.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fineprune.checkpoint.export import quiet_exporters
from fineprune.inference.bench.graphs import openvino_call
from fineprune.inference.bench.peers import quantized
from fineprune.inference.fallback import CsrEngine
from fineprune_runtime import Encoder, Layer, Linear, Matrix, Norm

EPSILON = 1e-12
DEEPSPARSE_OPSET = 14
REACH = 128


class Shape(NamedTuple):
    layers: int
    hidden: int
    inner: int
    heads: int
    rows: int = 1
    """How many outputs next to each other keep the same inputs: 4 is the structure [4, 1]."""
    bias: bool = False
    """Whether attention adds a bias by distance, one table for all layers, as MPNet's."""


SHAPES = {
    "base": Shape(12, 768, 3072, 12),  # BERT-base
    "base-4x1": Shape(12, 768, 3072, 12, rows=4),
    "mpnet": Shape(12, 768, 3072, 12, bias=True),
    "minilm": Shape(6, 384, 1536, 12),
    "minilm-4x1": Shape(6, 384, 1536, 12, rows=4),
    "tiny": Shape(2, 32, 64, 2),  # for tests
    "tiny-4x1": Shape(2, 32, 64, 2, rows=4),
    "tiny-bias": Shape(2, 32, 64, 2, bias=True),
}


class DistanceBias(nn.Module):
    """A number for each head and distance, key - query; from REACH on as at REACH."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(heads, 2 * REACH + 1))

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        distances = (places[None, :] - places[:, None]).clamp(-REACH, REACH)
        return self.table[:, distances + REACH][None]


class Block(nn.Module):
    """One post-norm layer, as in BERT, without dropout."""

    def __init__(self, shape: Shape, bias: DistanceBias | None) -> None:
        super().__init__()
        hidden, inner = shape.hidden, shape.inner
        self.heads, self.bias = shape.heads, bias
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))
        self.ffn_in, self.ffn_out = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        self.attention_norm, self.output_norm = (nn.LayerNorm(hidden, EPSILON) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        split = [
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        ]
        x = self.attention_norm(x + self.out(attend(split, self.bias, x)))
        return self.output_norm(x + self.ffn_out(functional.gelu(self.ffn_in(x))))


def attend(split: list[Tensor], bias: DistanceBias | None, x: Tensor) -> Tensor:
    """Attention of query, key and value, each (batch, heads, length, head); the heads side by side again."""
    added = None if bias is None else bias(x)
    return functional.scaled_dot_product_attention(*split, attn_mask=added).transpose(1, 2).flatten(2)


@torch.no_grad()
def fill(model: nn.Module, density: float, rows: int = 1, seed: int = 0) -> None:
    """Random weights, of each matrix the same share at random places. The fewer they are the larger: the
    spread of the activations, and with it the range that int8 has to cover, is the same at every density.

    `rows` outputs next to each other keep the same inputs.
    """
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            spread = 0.5 / math.sqrt(module.in_features * density)
            module.weight.normal_(0, spread, generator=random)
            kept = torch.rand(module.out_features // rows, module.in_features, generator=random) < density
            module.weight *= kept.repeat_interleave(rows, dim=0)
            module.bias.normal_(0, 0.02, generator=random)
        elif isinstance(module, nn.LayerNorm):
            module.weight.normal_(1, 0.1, generator=random)
            module.bias.normal_(0, 0.05, generator=random)
        elif isinstance(module, DistanceBias):
            module.table.normal_(0, 0.5, generator=random)


def make(shape: str, density: float) -> nn.Sequential:
    """An encoder in torch."""
    settings = SHAPES[shape]
    bias = DistanceBias(settings.heads) if settings.bias else None
    model = nn.Sequential(*(Block(settings, bias) for _ in range(settings.layers)))
    model.eval().requires_grad_(False)
    fill(model, density, settings.rows)
    return model


def tokens(shape: str, batch: int, length: int) -> Tensor:
    """Hidden states of random texts."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, SHAPES[shape].hidden, generator=random)


def linear(module: nn.Linear) -> Linear:
    """As the engine takes it."""
    return Linear(Matrix.from_dense(module.weight.numpy()), module.bias.numpy())


def engine(model: nn.Sequential, dtype: str, threads: int, level: str | None = None) -> Encoder:
    """The engine's encoder of the same weights, at the best level that offers the dtype or at a given one."""
    norm = lambda module: Norm(module.weight.numpy(), module.bias.numpy())  # noqa: E731
    layers = [
        Layer(
            *(linear(part) for part in (block.query, block.key, block.value, block.out)),
            norm(block.attention_norm),
            linear(block.ffn_in),
            linear(block.ffn_out),
            norm(block.output_norm),
            bias_rows=None if block.bias is None else np.arange(block.heads),
        )
        for block in model
    ]
    bias = model[0].bias
    return Encoder(
        layers,
        head_dim=model[0].out.in_features // model[0].heads,
        epsilon=EPSILON,
        bias=None if bias is None else bias.table.numpy(),
        dtype=dtype,
        threads=threads,
        level=level,
    )


class FeatureMajor:
    """The encoder with torch's CSR matrices, features in rows and tokens in columns: W @ X.

    The linear layers alone are turned: attention and norms are torch's own, on tokens in rows.
    """

    def __init__(self, model: nn.Sequential) -> None:
        self.blocks = [
            (
                block,
                {
                    name: CsrEngine(linear(part))
                    for name, part in block.named_children()
                    if isinstance(part, nn.Linear)
                },
            )
            for block in model
        ]

    def __call__(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        for block, parts in self.blocks:
            run = lambda name, value, parts=parts: torch.from_numpy(  # noqa: E731
                parts[name](value.reshape(batch * length, -1).numpy())
            ).view(batch, length, -1)
            split = [
                run(name, x).unflatten(-1, (block.heads, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            ]
            x = block.attention_norm(x + run("out", attend(split, block.bias, x)))
            x = block.output_norm(x + run("ffn_out", functional.gelu(run("ffn_in", x))))
        return x


Run = Callable[[], Any]


class Peers:
    """Everyone who can run one encoder on some threads. What takes long is made once, at the first `run`."""

    names = (
        "torch",
        "engine float32",
        "engine bfloat16",
        "engine int8",
        "torch CSR",
        "onnxruntime",
        "onnxruntime int8",
        "OpenVINO",
        "OpenVINO bfloat16",
        "OpenVINO int8",
        "DeepSparse",
    )

    def __init__(self, model: nn.Sequential, threads: int) -> None:
        self.model = model
        self.threads = threads
        self.made: dict[str, Any] = {}

    def run(self, name: str, x: Tensor) -> Run:
        """What answers `x` when it is called. Raises whatever a peer raises that is not there, or fails."""
        array = x.numpy()
        if name == "torch":
            return lambda: self.model(x)
        if name == "torch CSR":
            csr = self._once(name, lambda: FeatureMajor(self.model))
            return lambda: csr(x)
        if name.startswith("engine"):
            ours = self._once(name, lambda: engine(self.model, name.split()[1], self.threads))
            return lambda: ours(array)
        if name.startswith("onnxruntime"):
            session = self._once(name, partial(self._session, int8="int8" in name))
            return lambda: session.run(None, {"x": array})[0]
        if name == "DeepSparse":
            return self._deepsparse(x)
        return self._openvino(name, array)

    def _once(self, name: str, build: Callable[[], Any]) -> Any:
        if name not in self.made:
            self.made[name] = build()
        return self.made[name]

    def _graph(self) -> Any:
        import openvino

        with quiet_exporters(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.trace, which it calls
            return openvino.convert_model(
                self.model, example_input=torch.zeros(2, 8, self.model[0].out.in_features)
            )

    def _openvino(self, name: str, array: Any) -> Run:
        import openvino

        graph = self._once("graph", self._graph)
        core = self._once("core", openvino.Core)
        if "int8" in name:
            random = np.random.default_rng(2)
            shape = (1, 128, array.shape[2])
            samples = [random.standard_normal(shape, np.float32) for _ in range(4)]
            graph = self._once("int8", lambda: quantized(graph, samples))
        graph = graph.clone()
        graph.reshape(list(array.shape))
        if "bfloat16" in name and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeError("this processor has no bfloat16")
        precision = "bf16" if "bfloat16" in name else "f32"
        return partial(openvino_call(core, graph, precision, self.threads), [array])

    def _onnx(self, path: str) -> str:
        x = torch.zeros(2, 8, self.model[0].out.in_features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the older exporter, which needs no seconds a layer
            torch.onnx.export(
                self.model,
                (x,),
                path,
                dynamo=False,
                opset_version=DEEPSPARSE_OPSET,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "batch", 1: "length"}, "y": {0: "batch", 1: "length"}},
            )
        return path

    def _session(self, int8: bool) -> Any:
        """ONNX Runtime, with its dynamic quantization as `fineprune export` asks for it if `int8`."""
        import tempfile

        import onnxruntime
        from onnxruntime.quantization import quantize_dynamic

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            path = self._onnx(f"{folder}/model.onnx")
            if int8:
                with quiet_exporters():
                    quantize_dynamic(path, f"{folder}/int8.onnx", per_channel=True, reduce_range=True)
                path = f"{folder}/int8.onnx"
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def _deepsparse(self, x: Tensor) -> Run:
        import tempfile

        from deepsparse import compile_model
        from deepsparse.utils import override_onnx_input_shapes

        with tempfile.TemporaryDirectory() as folder:
            path = self._onnx(f"{folder}/model.onnx")
            with override_onnx_input_shapes(path, [list(x.shape)]) as fixed:
                made = compile_model(fixed, batch_size=len(x), num_cores=self.threads)
        return lambda: made.run([x.numpy()])[0]


def answer(run: Run) -> Tensor:
    """One answer of a peer, whatever it hands it over in."""
    found = run()
    if isinstance(found, dict):
        (found,) = found.values()
    return torch.as_tensor(np.asarray(found))
