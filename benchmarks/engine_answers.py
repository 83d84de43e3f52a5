"""End to end on fine-pruned classifiers: from tokens to a label, torch beside the engine.

    python benchmarks/engine_answers.py runs/short-sst2 runs/short-mnli ...    run folders

Every validation text of the run at its true length: the score, and how many labels differ from torch's. Then
the time of texts one by one, and of batches sorted by length; torch and the engines take turns on each. Texts
are tokenized before. "runtime" is fineprune_runtime, without torch. Writes engine_answers.{json,md} into
benchmarks/results.
"""

import argparse
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
from fineprune.inference.bench.timing import machine
from fineprune.study.frontier.texts import read_texts
from fineprune.tasks.opening import open_trained
from fineprune.training.run.convert import compact_folder
from fineprune_runtime import loading

ROOT = Path(__file__).parent.parent
TEXTS = 1000
BATCH = 32

# Ids, mask and perhaps types by name, (batch, length) -> the logits of each text.
Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], np.ndarray]


def torch_run(model: Any) -> Run:
    """By a model of transformers, accelerated or not."""

    def run(inputs: Inputs) -> np.ndarray:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits.numpy()

    return run


def runtime_run(loaded: Any) -> Run:
    """By the runtime without torch."""
    return lambda inputs: loaded.network(
        inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids")
    )


def runs_of(folder: Path, model: Any, scratch: Path, threads: int) -> dict[str, Run]:
    """Everyone who runs the model of a run."""
    small = compact_folder(folder, scratch / "small").folder
    found = {"torch": torch_run(model)}
    for dtype in fineprune_runtime.dtypes():
        packed = fineprune.load(small, packed=True)
        found[f"engine {dtype}"] = torch_run(fineprune.accelerate(packed, dtype, threads))
    for dtype in fineprune_runtime.dtypes():
        found[f"runtime {dtype}"] = runtime_run(loading.load(small, dtype, threads))
    return found


def together(texts: list[Inputs], padding: int) -> Inputs:
    """Several texts as one batch."""
    longest = max(text["input_ids"].shape[1] for text in texts)
    return {
        name: np.concatenate(
            [
                np.pad(
                    text[name],
                    ((0, 0), (0, longest - text[name].shape[1])),
                    constant_values=padding if name == "input_ids" else 0,
                )
                for text in texts
            ]
        )
        for name in texts[0]
    }


def timed(runs: dict[str, Run], batches: list[Inputs]) -> dict[str, list[float]]:
    """Seconds of each batch; each batch is every peer's before the next one comes."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for batch in batches:
        for name, run in runs.items():
            run(batch)
            begin = time.perf_counter()
            run(batch)
            times[name].append(time.perf_counter() - begin)
    return times


def measure(folder: Path, threads: int, count: int, rounds: int) -> dict[str, Any]:
    """Everything about one model."""
    opened = open_trained(folder, need_tokenizer=True)
    model = opened.model.float().eval()
    read = read_texts(folder, opened, 2**31)
    texts = [{name: np.asarray(values) for name, values in text.items()} for text in read.inputs]
    with tempfile.TemporaryDirectory() as scratch:
        runs = runs_of(folder, model, Path(scratch), threads)
        answers = {name: [run(text)[0] for text in texts] for name, run in runs.items()}
        order = sorted(range(len(texts)), key=lambda at: texts[at]["input_ids"].shape[1])
        groups = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        batches = [together([texts[at] for at in group], opened.tokenizer.pad_token_id) for group in groups]
        chosen = [texts[at * len(texts) // count % len(texts)] for at in range(count)]
        one = timed(runs, chosen)
        whole: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, times in timed(runs, batches).items():
                whole[name].append(sum(times))
    labels = {name: np.argmax(np.stack(logits), axis=-1) for name, logits in answers.items()}
    found = {}
    for name in runs:
        ratios = [base / own for base, own in zip(one["torch"], one[name], strict=True)]
        found[name] = {
            "score": read.score({"logits": answers[name]}),
            "differs": int((labels[name] != labels["torch"]).sum()),
            "p50_ms": 1e3 * float(np.percentile(one[name], 50)),
            "p99_ms": 1e3 * float(np.percentile(one[name], 99)),
            "ratio": statistics.median(ratios),
            "texts_per_second": len(texts) / statistics.median(whole[name]),
        }
    return {
        "model": folder.name,
        "density": fineprune.summary(model).density,
        "texts": len(texts),
        "tokens": statistics.mean(text["input_ids"].shape[1] for text in texts),
        "timed": count,
        "rounds": rounds,
        "peers": found,
        "machine": machine(threads),
    }


def table(models: list[dict[str, Any]]) -> str:
    """A line for each model and peer."""
    head = ["model", "density", "", "score", "labels unlike torch's", "p50, ms", "p99, ms"]
    head += ["times torch's speed", f"texts/s, batches of {BATCH}"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for model in models:
        for name, row in model["peers"].items():
            cells = [model["model"], f"{model['density']:.0%}", name, f"{row['score']:.2%}"]
            cells += [f"{row['differs']} of {model['texts']:,}"]
            cells += [f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms")]
            cells += [f"{row['ratio']:.1f}", f"{row['texts_per_second']:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    first = models[0]
    here = first["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    tokens = ", ".join(f"{model['tokens']:.0f}" for model in models)
    lines += [
        "",
        f"Texts of {tokens} tokens in the mean; {first['timed']:,} timed one by one, "
        f"batches {first['rounds']} times; {here['threads']} threads, {here['processor']}, {versions}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", type=int, default=TEXTS, help="timed one by one")
    parser.add_argument("--rounds", type=int, default=5, help="of the batches")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = []
    for folder in arguments.folders:
        with quiet():
            models.append(measure(folder, arguments.threads, arguments.texts, arguments.rounds))
        print(json.dumps(models[-1]["peers"]), flush=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json(arguments.results / "engine_answers.json", models)
    write_text(arguments.results / "engine_answers.md", table(models) + "\n")
    print(table(models))


if __name__ == "__main__":
    main()
