"""The control of lambda and Top_v beside a Lagrangian target and learned shares, which others use.

    python benchmarks/density_control.py            all 21 runs, about 2 hours of one core; resumes
    python benchmarks/density_control.py --table    the table of what is finished

SST-2, three layers of MiniLM, the recipe short-sst2 with three seeds; the dense run of a seed is start and
teacher of its others. Only the law under test differs, and all runs of a density have it at every step, as
near as whole units allow, so that none wins by keeping more. Runs lie in runs/density-control, results in
benchmarks/results/density_control.md.

Single weights at 3 %, soft movement, where lambda has to find its size:
  controlled     lambda is a function of the distance of the threshold from its path, without memory
  lagrangian     lambda = a + 2 b e of the error e of the density that the paper's threshold would leave; a
                 and b rise with e and e² by Adam, as in CoFi (Xia et al. 2022), at its rate and a larger one
Heads and neurons at 25 %, movement, where each matrix has a share:
  equal shares   the same share of each matrix (scope: local)
  one ranking    of all matrices (scope: global)
  learned        a matrix keeps sigmoid(t) of its units; t gets the sum of dL/dM over the units that are kept,
                 as in MLPruning (Yao et al. 2021). A shift that all t have in common keeps the density.
"""

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fineprune.pruning.density_control import controlled_lambda
from fineprune.pruning.methods import base
from fineprune.pruning.target import Target
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
UNITS = "pruning.structure={attention: head, feed_forward: neuron}"
WEIGHTS = ["pruning.method=soft_movement", "pruning.warmup=0.02", "pruning.density=0.03"]
STRUCTURED = ["pruning.method=movement", "pruning.warmup=0.02", "pruning.density=0.25", UNITS]


class Watch:
    """The law of the library, which notes how far the threshold ended from its path."""

    def __init__(self) -> None:
        self.off = 0.0
        self.targets: Sequence[Target] = ()
        self.density = 1.0

    def __call__(self, threshold: float, wanted: float, ramp: float, weights: int) -> float:
        self.off = threshold - wanted
        return self.law(threshold, wanted, ramp, weights)

    def law(self, threshold: float, wanted: float, ramp: float, weights: int) -> float:
        return controlled_lambda(threshold, wanted, ramp, weights)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        cut = base.Method._cut

        def watched(method: Any, rule: Any, targets: Sequence[Target], density: float) -> list[float]:
            self.targets, self.density = targets, density
            return cut(method, rule, targets, density)

        with patch.object(base.Method, "_cut", watched), patch.object(base, "controlled_lambda", self):
            yield


class Lagrangian(Watch):
    """Two multipliers that rise with the error of the density and with its square."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.multipliers = torch.zeros(2, requires_grad=True)
        self.adam = torch.optim.Adam([self.multipliers], lr=rate, maximize=True)

    @torch.no_grad()
    def law(self, threshold: float, wanted: float, ramp: float, weights: int) -> float:
        kept = sum(int((target.scores > wanted).sum()) for target in self.targets)
        error = kept / sum(target.scores.numel() for target in self.targets) - self.density
        self.multipliers.grad = torch.tensor([error, error * error])
        self.adam.step()
        first, second = self.multipliers.tolist()
        return max(0.0, first + 2 * second * error)  # the penalty has no negative side


class LearnedShares:
    """The share of each matrix by a threshold of its own, which learns from the units it keeps."""

    def __init__(self, rate: float = 1e-2) -> None:
        self.rate = rate
        self.thresholds = torch.zeros(0)
        self.shares: list[float] = []
        self.sums: dict[int, float] = {}
        self.adam: torch.optim.Adam | None = None

    @torch.no_grad()
    def __call__(self, targets: Sequence[Target], density: float) -> list[float]:
        if self.adam is None:
            self.thresholds = torch.zeros(len(targets), requires_grad=True)
            self.adam = torch.optim.Adam([self.thresholds], lr=self.rate)
            for index, target in enumerate(targets):
                target.scores.register_post_accumulate_grad_hook(partial(self._note, index, target))
        if self.sums:
            self.thresholds.grad = torch.tensor([self.sums[index] for index in range(len(targets))])
            self.adam.step()
        sizes = [target.scores.numel() * target.masked.grid.cost for target in targets]
        self.shares = shifted(self.thresholds.detach(), torch.tensor(sizes, dtype=torch.float64), density)
        return self.shares

    def _note(self, index: int, target: Target, scores: torch.Tensor) -> None:
        """Keep the sum of dL/dM over the kept units; the trainer drops gradients before the next cut."""
        assert scores.grad is not None
        self.sums[index] = float(scores.grad[target.masked.units].sum())

    @contextmanager
    def at_work(self) -> Iterator[None]:
        # A method of the scope `type` asks for the share of each matrix.
        init = base.Method.__init__

        def with_shares(method: Any, *arguments: Any) -> None:
            init(method, *arguments)
            method.scope = "type"

        with patch.object(base.Method, "__init__", with_shares), patch.object(base, "densities", self):
            yield


def shifted(thresholds: torch.Tensor, sizes: torch.Tensor, density: float) -> list[float]:
    """Return sigmoid(t + c) of each matrix, for the c that keeps `density` of all sizes, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        shares = torch.sigmoid(thresholds.double() + middle)
        if float((shares * sizes).sum() / sizes.sum()) < density:
            low = middle
        else:
            high = middle
    return [float(share) for share in shares]


LAWS: dict[str, tuple[list[str], Callable[[], Any]]] = {
    "soft movement, controlled": (WEIGHTS, Watch),
    "soft movement, lagrangian, rate 0.01": (WEIGHTS, lambda: Lagrangian(0.01)),
    "soft movement, lagrangian, rate 1": (WEIGHTS, lambda: Lagrangian(1.0)),
    "movement, equal shares": ([*STRUCTURED, "pruning.scope=local"], Watch),
    "movement, one ranking": ([*STRUCTURED, "pruning.scope=global"], Watch),
    "movement, learned": ([*STRUCTURED, "pruning.scope=local"], LearnedShares),
}


def run(law: str, seed: int, runs: Path, data: str) -> dict[str, Any]:
    """Return the row of a run, which a finished folder has already."""
    dense, out = runs / f"dense-{seed}", runs / f"{law.replace(', ', '-').replace(' ', '-')}-{seed}"
    if (out / "row.json").exists():
        return json.loads((out / "row.json").read_text())
    common = [f"task.data_dir={data}", f"training.seed={seed}", "training.evaluate_every=600", "dense=null"]
    alone = ["pruning=null", "distillation=null", "training.learning_rate=2e-4", "training.warmup=0.1"]
    run_recipe(Recipe.load("short-sst2", [*common, *alone]), dense, resume=True, progress=False)
    shutil.rmtree(out, ignore_errors=True)  # what a stopped run left: its law cannot go on
    start = [f"model.name={dense}", "model.layers=null", f"distillation.teacher={dense}"]
    settings, make = LAWS[law]
    under_test = make()
    with under_test.at_work():
        results = run_recipe(Recipe.load("short-sst2", [*common, *start, *settings]), out, progress=False)
    row = {
        "law": law,
        "seed": seed,
        "score": results["score"],
        "dense": json.loads((dense / "results.json").read_text())["score"],
        "density": results["density"],
        "off": getattr(under_test, "off", None),
        "shares": getattr(under_test, "shares", None),
    }
    (out / "row.json").write_text(json.dumps(row))
    return row


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table: means and standard errors over the seeds."""
    yield "| law | seeds | accuracy | of dense | density | threshold from its path |"
    yield "|---|---:|---:|---:|---:|---:|"
    for law in LAWS:
        found = [row for row in rows if row["law"] == law]
        if not found:
            continue
        scores = [100 * row["score"] for row in found]
        error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
        share = 100 * statistics.mean(row["score"] / row["dense"] for row in found)
        density = 100 * statistics.mean(row["density"] for row in found)
        off = "" if law.startswith("movement") else f"{statistics.mean(row['off'] for row in found):+.2f}"
        yield (
            f"| {law} | {len(found)} | {statistics.mean(scores):.1f} ± {error:.1f} | {share:.1f} % "
            f"| {density:.2f} % | {off} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "density-control")
    parser.add_argument("--data", default=str(ROOT.parent / "shared" / "data" / "sst2"))
    arguments = parser.parse_args()
    results = RESULTS / "density_control.json"
    if not arguments.table:
        torch.set_num_threads(1)
        rows = []
        for seed in range(arguments.seeds):
            for law in LAWS:
                rows.append(run(law, seed, arguments.runs, arguments.data))
                print(json.dumps(rows[-1]), flush=True)
                results.write_text(json.dumps(rows, indent=1) + "\n")
    rows = json.loads(results.read_text()) if results.exists() else []
    lines = "\n".join(table(rows))
    (RESULTS / "density_control.md").write_text(lines + "\n")
    print(lines)


if __name__ == "__main__":
    main()
