"""End to end on fine-pruned models of SST-2: from tokens to a label, torch beside the engine.

    python benchmarks/engine_sst2.py runs/sst2/movement-0.03-0 ...    run or model folders

Every sentence of the dev set at its true length: accuracy, and how many labels differ from torch's. Then the
time of sentences one by one, and of batches sorted by length; torch and the engines take turns on each. The
text is tokenized before. "runtime" is fineprune_runtime, without torch. Writes engine_sst2.{json,md} into
benchmarks/results.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

import fineprune
import fineprune_runtime
from fineprune._files import write_json, write_text
from fineprune._transformers_output import quiet
from fineprune.checkpoint.loading import open_model
from fineprune.inference.bench.timing import machine
from fineprune.training.run.convert import compact_folder
from fineprune_runtime import loading

ROOT = Path(__file__).parent.parent
SENTENCES = 1000
BATCH = 32
MAX_LENGTH = 128

# Token ids (batch, length) and their mask -> the label of each text.
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """Sentences and labels of the dev set."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["sentence"] for row in rows], np.array([int(row["label"]) for row in rows])


def torch_run(model: Any) -> Run:
    """By a model of transformers, accelerated or not."""

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
        return logits.numpy().argmax(axis=-1)

    return run


def runtime_run(loaded: Any) -> Run:
    """By the runtime without torch."""
    return lambda ids, mask: loaded.network(ids, mask).argmax(axis=-1)


def runs_of(folder: Path, scratch: Path, threads: int) -> tuple[dict[str, Run], float, Any]:
    """Everyone who runs the model of `folder`, its density, and its tokenizer."""
    model, tokenizer, _ = open_model(folder)
    density = fineprune.summary(model).density
    small = compact_folder(folder, scratch / "small").folder
    found = {"torch": torch_run(model.eval())}
    for dtype in fineprune_runtime.dtypes():
        packed = fineprune.load(small, packed=True)
        found[f"engine {dtype}"] = torch_run(fineprune.accelerate(packed, dtype, threads))
    for dtype in fineprune_runtime.dtypes():
        found[f"runtime {dtype}"] = runtime_run(loading.load(small, dtype, threads))
    return found, density, tokenizer


def padded(rows: list[list[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of several texts."""
    shape = (len(rows), max(map(len, rows)))
    ids, mask = np.full(shape, padding, np.int64), np.zeros(shape, np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
        mask[at, : len(row)] = 1
    return ids, mask


def timed(runs: dict[str, Run], batches: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, list[float]]:
    """Seconds of each batch; each batch is every peer's before the next one comes."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for batch in batches:
        for name, run in runs.items():
            run(*batch)
            begin = time.perf_counter()
            run(*batch)
            times[name].append(time.perf_counter() - begin)
    return times


def measure(folder: Path, data: Path, threads: int, sentences: int, rounds: int) -> dict[str, Any]:
    """Everything about one model."""
    texts, labels = read(data)
    with tempfile.TemporaryDirectory() as scratch:
        runs, density, tokenizer = runs_of(folder, Path(scratch), threads)
        rows = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        padding = tokenizer.pad_token_id
        single = [padded([row], padding) for row in rows]
        answers = {name: np.concatenate([run(*batch) for batch in single]) for name, run in runs.items()}
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        groups = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        batches = [padded([rows[at] for at in group], padding) for group in groups]
        one = timed(runs, [single[at % len(single)] for at in range(sentences)])
        whole: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, times in timed(runs, batches).items():
                whole[name].append(sum(times))
    found = {}
    for name in runs:
        ratios = [base / own for base, own in zip(one["torch"], one[name], strict=True)]
        found[name] = {
            "accuracy": float((answers[name] == labels).mean()),
            "differs": int((answers[name] != answers["torch"]).sum()),
            "p50_ms": 1e3 * float(np.percentile(one[name], 50)),
            "p99_ms": 1e3 * float(np.percentile(one[name], 99)),
            "ratio": statistics.median(ratios),
            "sentences_per_second": len(texts) / statistics.median(whole[name]),
        }
    return {
        "model": folder.parent.name if folder.name == "model" else folder.name,
        "density": density,
        "sentences": len(texts),
        "tokens": statistics.mean(map(len, rows)),
        "timed": sentences,
        "rounds": rounds,
        "peers": found,
        "machine": machine(threads),
    }


def table(models: list[dict[str, Any]]) -> str:
    """A line for each model and peer."""
    head = ["model", "density", "", "accuracy", "labels unlike torch's", "p50, ms", "p99, ms"]
    head += ["times torch's speed", f"sentences/s, batches of {BATCH}"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for model in models:
        for name, row in model["peers"].items():
            cells = [
                model["model"],
                f"{model['density']:.0%}",
                name,
                f"{row['accuracy']:.2%}",
                str(row["differs"]),
            ]
            cells += [f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms")]
            cells += [f"{row['ratio']:.1f}", f"{row['sentences_per_second']:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    first = models[0]
    here = first["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    lines += [
        "",
        f"{first['sentences']} sentences of {first['tokens']:.0f} tokens in the mean; "
        f"{first['timed']:,} timed one by one, batches {first['rounds']} times; "
        f"{here['threads']} threads, {here['processor']}, {versions}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "sst2" / "dev.tsv")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = []
    for folder in arguments.folders:
        settings = (arguments.threads, arguments.sentences, arguments.rounds)
        with quiet():
            models.append(measure(folder, arguments.data, *settings))
        print(json.dumps(models[-1]["peers"]), flush=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json(arguments.results / "engine_sst2.json", models)
    write_text(arguments.results / "engine_sst2.md", table(models) + "\n")
    print(table(models))


if __name__ == "__main__":
    main()
