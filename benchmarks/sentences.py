"""Time `encode` of a dense sentence model in several runtimes, and of its pruned copy in the engine.

    python benchmarks/sentences.py [--pruned FOLDER ...] [--dense FOLDER] [--smaller FOLDER] [--texts FILE]
        [--batch 1] [--rounds 7]

All sides run on one thread, tokenize, pool and normalize, and take turns in each round; a ratio is the median
over rounds. Without --pruned it is the dense model cut by magnitude to --density, for its speed alone: its
vectors are of no use. --smaller adds another dense model, which one would serve in the place of the
pruned one. Needs the extras `demo`, `sentences` and `export`; fastembed where it is installed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import fineprune
import fineprune_runtime
from fineprune._messages import one_line
from fineprune.checkpoint.model_folder import minilm_folder
from fineprune.inference.bench import peers
from fineprune.inference.bench.graphs import onnx_call, openvino_call, openvino_core
from fineprune.pruning.targets import find_targets
from fineprune.tasks.docstring_pairs import __doc__ as prose

WORDS = " ".join(str(prose).split()).split()
CALIBRATION = 64  # texts from which nncf learns the ranges of the activations

Encode = Callable[[list[str]], Any]


def cut(model: torch.nn.Module, density: float) -> None:
    """Set all but the largest weights of each matrix to zero."""
    for module in find_targets(model).values():
        weight = module.get_parameter("weight").detach()
        count = round(weight.numel() * (1 - density))
        weight[weight.abs() <= weight.abs().flatten().kthvalue(count).values] = 0


def texts_of(file: Path | None, count: int) -> list[str]:
    """Evenly spaced lines of a file, or texts of 8 to 31 words."""
    if file is None:
        return [
            " ".join(WORDS[(7 * row + n) % len(WORDS)] for n in range(8 + row % 24)) for row in range(count)
        ]
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    count = min(count, len(lines))
    return [lines[row * len(lines) // count] for row in range(count)]


def by_graph(dense: SentenceTransformer, call: Any) -> Encode:
    """Encode by a graph of the transformer alone: the mean over tokens, normalized."""

    def encode(texts: list[str]) -> Any:
        given = dict(
            dense.tokenizer(
                texts, padding=True, truncation=True, max_length=dense.max_seq_length, return_tensors="np"
            )
        )
        hidden, mask = call(given)["last_hidden_state"], given["attention_mask"][..., None]
        vectors = (hidden * mask).sum(1) / mask.sum(1)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


def openvino(dense: SentenceTransformer, job: peers.Job, texts: list[str]) -> Encode:
    """Encode by OpenVINO with 8-bit weights and activations."""
    core = openvino_core()
    graph = core.read_model(peers.exported(job, "openvino", False) / "openvino_model.xml")
    samples = [
        dict(dense.tokenizer(text, truncation=True, max_length=dense.max_seq_length, return_tensors="np"))
        for text in texts
    ]
    return by_graph(dense, openvino_call(core, peers.quantized(graph, samples), "f32", 1))


def fastembed(dense: SentenceTransformer, job: peers.Job) -> Encode:
    """Encode by fastembed, in ONNX Runtime's float32."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    folder = peers.exported(job, "onnx", False)
    dense.tokenizer.save_pretrained(folder)
    job.model.config.save_pretrained(folder)
    name = str(folder)  # one for each model: fastembed takes none twice
    TextEmbedding.add_custom_model(
        name,
        PoolingType.MEAN,
        True,
        ModelSource(hf=name),
        dim=dense.get_embedding_dimension(),
        model_file="model.onnx",
    )
    model = TextEmbedding(name, specific_model_path=name, threads=1)
    return lambda texts: np.stack(list(model.embed(texts)))


def sides_of_dense(model: str, source: Path, texts: list[str], scratch: Path) -> dict[str, Encode]:
    """All that runs a dense model here, by name, torch first; says what does not."""
    scratch.mkdir()
    dense = SentenceTransformer(str(source), device="cpu").eval()
    inputs = dict(dense.tokenizer(texts[:2], padding=True, return_tensors="pt"))
    job = peers.Job(dense.transformers_model, inputs, 1, scratch)
    makers: dict[str, Callable[[], Encode]] = {
        "onnxruntime int8": lambda: by_graph(
            dense, onnx_call(peers.exported(job, "onnx", True) / "model.onnx", 1)
        ),
        "OpenVINO int8": lambda: openvino(dense, job, texts[:CALIBRATION]),
        "fastembed": lambda: fastembed(dense, job),
    }
    sides: dict[str, Encode] = {"torch": lambda rows: dense.encode(rows, show_progress_bar=False)}
    expected = sides["torch"](texts[:4])
    for name, make in makers.items():
        try:
            encode = make()
            far = float(np.abs(encode(texts[:4]) - expected).max())
        except Exception as error:  # by side: it is said, and the others go on
            print(f"{model}, {name}: not run ({one_line(error)})")
            continue
        print(f"{model}, {name}: vectors differ from torch's by up to {far:.3f}")
        sides[name] = encode
    return sides


def sides_of_pruned(small: Path) -> dict[str, Encode]:
    """A compact folder in each type of the engine that runs here, and inside sentence-transformers."""
    sides: dict[str, Encode] = {
        f"engine {dtype}": fineprune_runtime.load(small, dtype=dtype, threads=1).encode
        for dtype in fineprune_runtime.dtypes()
    }
    fast = fineprune.accelerate(SentenceTransformer(str(small), device="cpu"), threads=1)
    return sides | {"accelerate float32": lambda rows: fast.encode(rows, show_progress_bar=False)}


def all_sides(asked: argparse.Namespace, texts: list[str], scratch: Path) -> dict[str, Encode]:
    """All that is compared, by the name of the model and of the runtime, the dense model in torch first."""
    source = asked.dense or Path(minilm_folder())
    pruned = asked.pruned
    if not pruned:
        model = SentenceTransformer(str(source), device="cpu")
        cut(model, asked.density)
        pruned = [fineprune.save_compact(model, scratch / "small").folder]
    found = {"dense": sides_of_dense("dense", source, texts, scratch / "dense")}
    if asked.smaller is not None:
        found["smaller"] = sides_of_dense("smaller", asked.smaller, texts, scratch / "smaller")
    found |= {f"pruned {small}": sides_of_pruned(small) for small in pruned}
    return {f"{model}, {name}": encode for model, sides in found.items() for name, encode in sides.items()}


def main() -> None:
    """Print the median texts a second of each side, and the median ratio to torch's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dense", type=Path, help="a folder of sentence-transformers; all-MiniLM-L6-v2")
    parser.add_argument("--smaller", type=Path, help="a folder of another dense model")
    parser.add_argument("--pruned", type=Path, nargs="+", help="compact folders of its pruned copies")
    parser.add_argument("--density", type=float, default=0.1, help="without --pruned")
    parser.add_argument("--texts", type=Path, help="a text a line; texts of 8 to 31 words")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32, help="texts in a call")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    texts = texts_of(asked.texts, asked.count)
    calls = [texts[first : first + asked.batch] for first in range(0, len(texts), asked.batch)]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        sides = all_sides(asked, texts, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(asked.rounds + 1):  # the first warms up
            for name, encode in sides.items():
                before = time.perf_counter()
                for rows in calls:
                    encode(rows)
                if number:
                    seconds[name].append(time.perf_counter() - before)
    first, width = next(iter(seconds.values())), max(map(len, seconds))
    for name, times in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(first, times, strict=True))
        speed = len(texts) / statistics.median(times)
        print(f"{name:{width}} {speed:8.0f} texts/s  {ratio:5.2f} x the first")


if __name__ == "__main__":
    main()
