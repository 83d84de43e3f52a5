"""A pruned model on disk: its size beside what it could be, loading, the codec's speed, the score lost.

    python benchmarks/compact.py sizes            BERT-base's shape at 10, 5 and 3 %, about 5 minutes
    python benchmarks/compact.py load             from_pretrained, compact against dense, interleaved
    python benchmarks/compact.py memory           resident memory of a loaded model, BERT-base's shape at 3 %
    python benchmarks/compact.py codec            MB/s of dense float32, one core
    python benchmarks/compact.py score RUN...     sizes and accuracy of finished runs, by type

`make bench` runs `codec`. Asserts nothing.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import fineprune
import fineprune_runtime
from fineprune.inference.bench import resident_memory
from fineprune.pruning.targets import find_targets
from fineprune_runtime import codec

DENSITIES = (0.10, 0.05, 0.03)
TYPES = (("float32", "keep"), ("float16", "float16"), ("int8", "int8"), ("int8", "int4"))
VALUE_BITS = {"float32": 32, "float16": 16, "int8": 8}


def entropy(density: float) -> float:
    """Bits that a position costs at least, per weight: H(v)."""
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)


def bert_base(density: float) -> BertForSequenceClassification:
    """BERT-base's shape with random weights, every matrix of its layers cut to a random mask."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=2)).eval()
    with torch.no_grad():
        for module in find_targets(model).values():
            weight = module.get_parameter("weight")
            order = torch.randperm(weight.numel())[: weight.numel() - round(density * weight.numel())]
            weight.view(-1)[order] = 0
    return model


def packed_bytes(folder: Path) -> tuple[int, int, int]:
    """Bytes of the pruned matrices' blobs, of their positions alone, and how many weights they hold."""
    from safetensors import safe_open

    whole = positions = weights = 0
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            blob = file.get_tensor(name)
            if blob.dtype != torch.uint8 or "embeddings" in name:
                continue
            header = codec.read_header(blob.numpy())
            scales = 4 * header.shape[0] if header.values == "int8" else 0
            whole += len(blob)
            positions += len(blob) - header.size - scales - header.kept * VALUE_BITS[header.values] // 8
            weights += math.prod(header.shape)
    return whole, positions, weights


def sizes(model: torch.nn.Module, place: Path) -> None:
    """Print a line for each type: the packed matrices, the whole file, positions beside H(v)."""
    dense = place / "dense"
    model.save_pretrained(dense)
    file = dense / "model.safetensors"
    with zipfile.ZipFile(place / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file)
    density = fineprune.summary(model).density
    print(f"\ndensity {density:.1%}: dense {file.stat().st_size / 1e6:.1f} MB, ", end="")
    print(f"its zeros zipped {(place / 'zip').stat().st_size / 1e6:.1f} MB")
    print("| values | embeddings | pruned, MB | whole, MB | positions / H(v) | pruned / (H(v) + values) |")
    print("|---|---|---|---|---|---|")
    for values, embeddings in TYPES:
        done = fineprune.save_compact(model, place / "compact", values=values, embeddings=embeddings)
        whole, positions, weights = packed_bytes(done.folder)
        bound = entropy(density)
        least = (bound + density * VALUE_BITS[values]) * weights / 8
        print(
            f"| {values} | {embeddings} | {whole / 1e6:.2f} | {done.bytes / 1e6:.1f} "
            f"| {8 * positions / weights / bound:.3f} | {whole / least:.3f} |"
        )


def load(rounds: int) -> None:
    """Interleaved `from_pretrained` of the same model, dense and compact.

    Warm: the file in the page cache, where the dense one is only mapped, and nothing of it is read. Cold: the
    page cache told to forget the file, as on a machine that has just started.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = bert_base(0.03)
        places = {"dense": Path(folder) / "dense"}
        model.save_pretrained(places["dense"])
        for values, embeddings in TYPES:
            name = f"{values}, embeddings {embeddings}"
            places[name] = fineprune.save_compact(model, Path(folder) / name, None, values, embeddings).folder
        ids = torch.arange(1000, 1128).view(1, -1)
        times: dict[tuple[str, str, str], list[float]] = {}
        for _ in range(rounds + 1):
            for state in ("warm", "cold"):
                for name, place in places.items():
                    if state == "cold":
                        forget(place / "model.safetensors")
                    begin = time.perf_counter()
                    loaded = AutoModelForSequenceClassification.from_pretrained(place)
                    times.setdefault((name, "load", state), []).append(time.perf_counter() - begin)
                    with torch.inference_mode():
                        loaded(input_ids=ids)
                    times.setdefault((name, "answer", state), []).append(time.perf_counter() - begin)
        print(f"BERT-base's shape at 3 %, median of {rounds} interleaved rounds, 1 thread; dense takes 1")
        print("                              from_pretrained      and one answer to 128 tokens")
        print("                              warm      cold       warm      cold")
        median = {key: statistics.median(taken[1:]) for key, taken in times.items()}
        columns = [(what, state) for what in ("load", "answer") for state in ("warm", "cold")]
        for name in places:
            ratios = (median[(name, *column)] / median[("dense", *column)] for column in columns)
            print(f"{name:28}  " + "".join(f"{ratio:<10.2f}" for ratio in ratios))


def memory() -> None:
    """What the process grows by, loading and after one answer to 128 tokens; a fresh process each."""
    ids = [list(range(1000, 1128))]
    with tempfile.TemporaryDirectory() as folder:
        model, dense = bert_base(0.03), str(Path(folder) / "dense")
        model.save_pretrained(dense)
        small = fineprune.save_compact(model, Path(folder) / "small", None, "int8", "int8").folder
        print("| way of loading | seconds | loaded, MB | after an answer, MB | of dense |")
        print("|---|---|---|---|---|")
        base = None
        for way in (resident_memory.DENSE, *(f"accelerate {dtype}" for dtype in fineprune_runtime.dtypes())):
            source = dense if way == resident_memory.DENSE else str(small)
            kind = type(model).__name__
            found = resident_memory.measure(resident_memory.Request(way, source, kind, ids, 1))
            base = base or found.answered
            print(
                f"| {way} | {found.seconds:.2f} | {found.loaded:.0f} | {found.answered:.0f} "
                f"| {found.answered / base:.2f} |"
            )


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def codec_speed(repeats: int = 5) -> None:
    """Encode and decode a matrix of BERT's feed-forward layer."""
    random = np.random.default_rng(0)
    print("MB/s of dense float32, best of", repeats, "on one core: encode / decode")
    for density in (*DENSITIES, 0.5, 1.0):
        weight = random.standard_normal((768, 3072), dtype=np.float32)
        weight[random.random(weight.shape) >= density] = 0
        line = []
        for values in ("float32", "float16", "int8", "int4"):
            encode, decode = [], []
            for _ in range(repeats):
                begin = time.perf_counter()
                blob = codec.encode(weight, values)
                middle = time.perf_counter()
                codec.decode(blob, weight.shape)
                encode.append(middle - begin)
                decode.append(time.perf_counter() - middle)
            speeds = (weight.nbytes / min(taken) / 1e6 for taken in (encode, decode))
            line.append(f"{values} " + " / ".join(f"{speed:.0f}" for speed in speeds))
        print(f"{density:4.0%}  " + "   ".join(line))


def score(runs: list[Path]) -> None:
    """Pack finished runs by each type, and score what was packed on the recipe's validation data."""
    from fineprune.checkpoint.packing import Packing
    from fineprune.training.run.convert import compact_folder
    from fineprune.training.run.evaluate import evaluate_run

    print("| run | dense file, MB | " + " | ".join(f"{v}, emb. {e}: MB, points" for v, e in TYPES) + " |")
    print("|---|---|" + "---|" * len(TYPES))
    for run in runs:
        before = evaluate_run(run)["accuracy"]
        cells = []
        with tempfile.TemporaryDirectory() as folder:
            for values, embeddings in TYPES:
                done = compact_folder(run, Path(folder) / "compact", Packing(values, embeddings))
                after = evaluate_run(run, model_folder=done.folder)["accuracy"]
                cells.append(f"{done.bytes / 1e6:.1f}, {100 * (after - before):+.2f}")
        dense = sum(file.stat().st_size for file in (run / "model").glob("*.safetensors"))
        print(f"| {run.name} ({before:.2%}) | {dense / 1e6:.1f} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("sizes", "load", "memory", "codec", "score"))
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.what == "sizes":
        for density in DENSITIES:
            with tempfile.TemporaryDirectory() as folder:
                sizes(bert_base(density), Path(folder))
    elif arguments.what == "load":
        load(arguments.rounds)
    elif arguments.what == "memory":
        memory()
    elif arguments.what == "codec":
        codec_speed()
    else:
        score(arguments.runs)


if __name__ == "__main__":
    main()
