"""Time `encode` of a run's sentence model in the engine against its dense model in others, on one thread.

    python benchmarks/sentence_peers.py RUN TEXTS [--texts 256] [--rounds 7] [--batch 32]

RUN is a folder of `fineprune run embeddings`, TEXTS a file with a text a line, of which evenly spaced ones
are taken. All sides take turns in each round, each with its tokenizer, batches of texts of similar length,
pooling and normalization; ratios are medians over rounds. fastembed takes part if it is installed. Needs the
extras `export` and `sentences`.
"""

import argparse
import importlib.util
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import fineprune_runtime
from fineprune.checkpoint.model_folder import find_model
from fineprune.inference.bench.graphs import onnx_call, openvino_call, openvino_core
from fineprune.inference.bench.peers import Job, arrays, exported, quantized
from fineprune.tasks.embeddings.encoder import pooled
from fineprune.tasks.embeddings.sentence import read_sentence
from fineprune.training.run.convert import compact_folder
from fineprune.training.run.recipe import Recipe

Encode = Callable[[list[str]], Any]


class Graph:
    """Encodes texts by an exported graph."""

    def __init__(self, call: Any, dense: Path, batch: int) -> None:
        self._call, self._batch = call, batch
        self._sentence = read_sentence(dense)
        self._tokenizer = AutoTokenizer.from_pretrained(dense)

    def feeds(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the inputs of a batch."""
        longest = self._sentence.longest
        given = {"truncation": True, "max_length": longest, "padding": True, "return_tensors": "pt"}
        return dict(self._tokenizer(list(texts), **given))

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return the embeddings, in the order given."""
        order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            given = self.feeds([texts[at] for at in places])
            hidden = next(value for value in self._call(arrays(given)).values() if value.ndim == 3)
            vectors = pooled(self._sentence, torch.from_numpy(np.array(hidden)), given["attention_mask"])
            for at, vector in zip(places, vectors.numpy(), strict=True):
                found[at] = vector
        return np.stack(found)


def exports(dense: Path, texts: Sequence[str], scratch: Path, batch: int) -> dict[str, Encode]:
    """Return the dense model in OpenVINO and ONNX Runtime with 8-bit weights and activations."""
    model: Any = AutoModel.from_pretrained(dense, dtype=torch.float32, attn_implementation="eager").eval()
    samples = [
        Graph(None, dense, batch).feeds(texts[at : at + batch])
        for at in range(0, min(len(texts), 8 * batch), batch)
    ]
    job = Job(model, samples[0], 1, scratch)
    core = openvino_core()
    graph = core.read_model(exported(job, "openvino", False) / "openvino_model.xml")
    graph = quantized(graph, [arrays(sample) for sample in samples])
    calls = {
        "dense, OpenVINO int8": openvino_call(core, graph, "f32", 1),
        "dense, onnxruntime int8": onnx_call(exported(job, "onnx", True) / "model.onnx", 1),
    }
    return {name: Graph(call, dense, batch).encode for name, call in calls.items()}


def fastembed(dense: Path, scratch: Path, batch: int) -> Encode:
    """Return the dense model, float32, in fastembed, from a local folder in the place of its download."""
    from fastembed import TextEmbedding

    folder = scratch / "fastembed"
    shutil.copytree(dense, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    shutil.copytree(scratch / "onnx", folder, dirs_exist_ok=True)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    model = TextEmbedding(name, specific_model_path=str(folder), threads=1)
    return lambda texts: np.stack(list(model.embed(texts, batch_size=batch)))


def size(folder: Path) -> int:
    """Return the bytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sides_of(asked: Any, texts: Sequence[str], dense: Path, scratch: Path) -> dict[str, Encode]:
    """Return what encodes, by name; the first is the one that ratios are of."""
    compact_folder(asked.run, scratch / "small")
    opened = SentenceTransformer(str(dense), device="cpu")
    sides: dict[str, Encode] = {"dense, torch": lambda given: opened.encode(given, batch_size=asked.batch)}
    sides |= exports(dense, texts, scratch, asked.batch)
    if importlib.util.find_spec("fastembed") is None:
        print("fastembed is not installed, and left out")
    else:
        model: Any = AutoModel.from_pretrained(dense, dtype=torch.float32, attn_implementation="eager").eval()
        exported(Job(model, Graph(None, dense, 2).feeds(texts[:2]), 1, scratch), "onnx", False)
        try:
            sides["dense, fastembed float32"] = fastembed(dense, scratch, asked.batch)
        except Exception as error:  # of a version that wants other files
            print(f"fastembed cannot open the folder, and is left out: {error}")
    for dtype in ("float32", "int8"):
        if dtype in fineprune_runtime.dtypes():
            small = fineprune_runtime.load(scratch / "small", dtype=dtype, threads=1)
            sides[f"pruned, engine {dtype}"] = small.encode
    return sides


def main() -> None:
    """Print a Markdown table of texts a second, ratios and nearness, and the sizes of the folders."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    every = [line for line in asked.file.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [every[at * len(every) // asked.texts] for at in range(asked.texts)]
    dense = Path(find_model(Recipe.load(asked.run / "recipe.yaml").model.name))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sides = sides_of(asked, texts, dense, scratch)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        vectors = {}
        for number in range(asked.rounds + 1):  # the first warms up
            for name, encode in sides.items():
                before = time.perf_counter()
                vectors[name] = encode(texts)
                if number:
                    seconds[name].append(time.perf_counter() - before)
        print(
            "| `encode` by | texts a second | times torch | times OpenVINO int8 | cosine to the dense model |"
        )
        print("|---|---|---|---|---|")
        first, second = list(sides)[:2]
        for name, times in seconds.items():
            ratios = [
                statistics.median(one / own for one, own in zip(seconds[other], times, strict=True))
                for other in (first, second)
            ]
            near = float((vectors[name] * vectors[first]).sum(1).mean())
            speed = len(texts) / statistics.median(times)
            print(f"| {name} | {speed:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {near:.3f} |")
        sizes = {"dense": size(dense), "compact": size(scratch / "small")}
        print("\n" + ", ".join(f"{name} folder {count / 1e6:.1f} MB" for name, count in sizes.items()))


if __name__ == "__main__":
    main()
