"""How far the scores of the methods agree on which weights matter, on one model in one training.

    python benchmarks/score_correlation.py --data ../shared/data/sst2/train.tsv --out docs/pictures

The first three layers of MiniLM are fine-tuned on SST-2, and then trained on while every score reads the same
gradients. Nothing is cut, so no score changes what another one sees. The picture has Spearman's rank
correlation of the scores of weights drawn from all matrices, and the share of weights that two scores have in
common among their highest 10 %. Needs the extra `all`, and five minutes of a core.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fineprune
from fineprune import PruningConfig
from fineprune._transformers_output import quiet
from fineprune.checkpoint.model_folder import minilm_folder
from fineprune.config import method_class
from fineprune.pruning.score_rules import Observed

OBSERVED = {"platon": {}, "pins": {}, "fisher": {}, "admm": {"options": {"strength": 1e-9}}}
LABELS = {
    "magnitude": "magnitude, |W|",
    "movement": "movement",
    "movement_zero": "movement, from 0",
    "accumulated": "−Σ W·g (Eq. 4)",
    "taylor": "|W·mean g|",
    "biased": "|W|·|W·mean g|",
    "platon": "platon",
    "pins": "pins",
    "fisher": "fisher",
    "admm": "admm, E[g²]·W²",
}
SAMPLE = 200_000
SHARE = 0.1


class Shadow:
    """A target as a score rule sees it: the weight of a real one, scores and statistics of its own."""

    def __init__(self, target: Any, rule: Observed) -> None:
        self.weight, self.size, self._real = target.weight, target.size, target
        self.scores = rule.start(target.size())
        statistics = rule.statistics(target.size())
        real = target.masked
        self.masked = SimpleNamespace(
            grid=real.grid, mask=real.mask, within=real.within, statistics=statistics, scores=self.scores
        )

    def take(self) -> None:
        """Take the gradient of the real scores, dL/dW'·W."""
        self.scores.grad = self._real.scores.grad.clone()


def batches(path: Path, steps: int, rows: int) -> list[Any]:
    """Return tokenized batches, in an order that seed 0 draws."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    drawn = np.random.default_rng(0).choice(len(lines), (steps, rows), replace=False)
    made = []
    for places in drawn:
        texts = [lines[place]["sentence"] for place in places]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        made.append(batch | {"labels": torch.tensor([int(lines[place]["label"]) for place in places])})
    return made


def measured(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Return the scores of all weights after the training, by name of `LABELS`."""
    torch.manual_seed(0)
    layers = {"num_hidden_layers": arguments.layers, "num_labels": 2}
    model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), **layers).train()
    data = batches(arguments.data, arguments.dense + arguments.steps, arguments.batch)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-4)
    for batch in data[: arguments.dense]:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    total = arguments.steps + 2
    plan = {"warmup": arguments.steps, "cooldown": 1}
    pruner = fineprune.prepare(model, PruningConfig("movement", score_init="zero", **plan), total)
    start = [target.size() for target in pruner.targets]
    sums = [torch.zeros_like(size) for size in start]
    gradients = [torch.zeros_like(size) for size in start]
    rules, shadows = {}, {}
    for name, settings in OBSERVED.items():
        rules[name] = method_class(name)(PruningConfig(name, **plan, **settings), total).bundle.rule
        shadows[name] = [Shadow(target, rules[name]) for target in pruner.targets]
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-4)
    for step, batch in enumerate(data[arguments.dense :], start=1):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        for name, rule in rules.items():
            for shadow in shadows[name]:
                shadow.take()
            rule.observe(shadows[name], step, lambda _: 1e-4)
        for target, total_moved, total_gradient in zip(pruner.targets, sums, gradients, strict=True):
            total_moved -= target.scores.grad
            total_gradient += target.weight.grad
        optimizer.step()
        pruner.step()
    sizes = [target.size() for target in pruner.targets]
    taylor = [size * gradient.abs() for size, gradient in zip(sizes, gradients, strict=True)]
    zero = [target.scores.detach() for target in pruner.targets]
    found = {
        "magnitude": sizes,
        "movement": [score + size / size.mean() for score, size in zip(zero, start, strict=True)],
        "movement_zero": zero,
        "accumulated": sums,
        "taylor": taylor,
        "biased": [size * entry for size, entry in zip(sizes, taylor, strict=True)],
    }
    for name in ("platon", "pins", "fisher"):
        found[name] = rules[name].ranked(shadows[name]).tensors
    # What the projection of admm ranks: z and u are 0 until the pull begins.
    found["admm"] = [s.scores * size.square() for s, size in zip(shadows["admm"], sizes, strict=True)]
    return {name: torch.cat([entry.flatten() for entry in found[name]]) for name in LABELS}


def compared(scores: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices of rank correlations and of shared highest weights, in the order of `LABELS`."""
    drawn = np.random.default_rng(0).choice(len(scores["magnitude"]), SAMPLE, replace=False)
    ranks = np.stack([rankdata(scores[name].numpy()[drawn]) for name in LABELS])
    count = round(SHARE * len(scores["magnitude"]))
    highest = np.zeros((len(LABELS), len(scores["magnitude"])), dtype=bool)
    for row, name in zip(highest, LABELS, strict=True):
        row[scores[name].topk(count).indices.numpy()] = True
    shared = [[float((one & other).sum() / count) for other in highest] for one in highest]
    return np.corrcoef(ranks), np.array(shared)


def drawn(correlation: np.ndarray, shared: np.ndarray, path: Path) -> None:
    """Write the picture: correlations below the diagonal, shares above it."""
    from matplotlib.figure import Figure

    both = np.where(np.tri(len(LABELS), dtype=bool), correlation, shared)
    figure = Figure(figsize=(7.2, 6.2), layout="constrained")
    axis = figure.add_subplot()
    axis.imshow(both, cmap="RdBu_r", vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(both):
        color = "white" if abs(value) > 0.6 else "black"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    names = list(LABELS.values())
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_title(
        "Below the diagonal: rank correlation of two scores\n"
        f"Above: share of the highest {SHARE:.0%} that they have in common (by chance {SHARE})",
        fontsize=9,
        loc="left",
    )
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train, write `scores-by-rank.png` and `.json`, and print the table against movement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2/train.tsv"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--dense", type=int, default=150)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    with quiet():
        scores = measured(arguments)
    correlation, shared = compared(scores)
    arguments.out.mkdir(parents=True, exist_ok=True)
    drawn(correlation, shared, arguments.out / "scores-by-rank.png")
    tables = {"scores": list(LABELS), "correlation": correlation.tolist(), "shared": shared.tolist()}
    (arguments.out / "scores-by-rank.json").write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")
    place = list(LABELS).index("movement")
    for name, label in LABELS.items():
        row = list(LABELS).index(name)
        print(f"{label:20} correlation {correlation[row, place]:5.2f}, shared {shared[row, place]:.2f}")
    print(f"{time.perf_counter() - begun:.0f} seconds")


if __name__ == "__main__":
    main()
