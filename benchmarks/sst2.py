"""Dense, magnitude, movement, soft movement and L0 on SST-2, at 10 % and 3 %, over seeds.

    python benchmarks/sst2.py            all 27 runs, about two hours on 2 cores; resumes
    python benchmarks/sst2.py --table    the table of what is finished

Run it from the repository: the recipe's data are in ../shared/data. The first three layers of
all-MiniLM-L6-v2, 1,000 steps of batch 32. Every method gets the library's defaults; nothing is
tuned for one of them. Runs lie in runs/sst2, the figures in benchmarks/results/sst2.json, sst2.md.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
METHODS = ("magnitude", "movement", "soft_movement", "l0")


def cells(seeds: int) -> list[tuple[str, str, float, int]]:
    """Name, method, density and seed of each run: the dense ones and 3 % first, then 10 %."""
    low = [("dense", 1.0), *((method, 0.03) for method in METHODS)]
    groups = [low, [(method, 0.1) for method in METHODS]]
    return [
        (f"{method}-{density:g}-{seed}", method, density, seed)
        for group in groups
        for seed in range(seeds)
        for method, density in group
    ]


def run(cell: tuple[str, str, float, int], runs: Path) -> str:
    """One run in a worker process, on one thread."""
    import torch

    from fineprune.training.run.recipe import Recipe
    from fineprune.training.run.train import run_recipe

    torch.set_num_threads(1)
    name, method, density, seed = cell
    pruning = [f"pruning.method={method}", f"pruning.density={density}"]
    overrides = ["pruning=null"] if method == "dense" else pruning
    overrides += [f"training.seed={seed}", "training.evaluate_every=1000"]
    recipe = Recipe.load(ROOT / "recipes" / "sst2-movement.yaml", overrides)
    results = run_recipe(recipe, runs / name, resume=True, progress=False)
    return f"{name}: {results['score']:.2%} at {results['density']:.2%}, {results['seconds']:.0f} s"


def collect(runs: Path, seeds: int) -> list[dict[str, object]]:
    """What the finished runs measured."""
    rows = []
    for name, method, density, seed in cells(seeds):
        path = runs / name / "results.json"
        if path.exists():
            results = json.loads(path.read_text())
            row = {"method": method, "asked": density, "seed": seed}
            row |= {key: results[key] for key in ("score", "density", "kept", "total", "steps", "seconds")}
            rows.append(row | {"environment": results["environment"]})
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Mean and standard deviation over seeds, and the share of the dense mean that is kept."""
    scores: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        scores.setdefault((row["method"], row["asked"]), []).append(100 * row["score"])
    dense = statistics.mean(scores.get(("dense", 1.0), [float("nan")]))
    lines = ["| method | density | accuracy, % | of dense | seeds |", "|---|---|---|---|---|"]
    for (method, density), values in sorted(scores.items(), key=lambda item: (-item[0][1], item[0][0])):
        mean = statistics.mean(values)
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        line = f"| {method} | {density:.0%} | {mean:.1f}{spread} | {mean / dense:.1%} | {len(values)} |"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "sst2")
    parser.add_argument("--table", action="store_true", help="only collect what is finished")
    arguments = parser.parse_args()
    failed = 0
    if not arguments.table:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
            pending = [pool.submit(run, cell, arguments.runs) for cell in cells(arguments.seeds)]
            for future in as_completed(pending):
                try:
                    print(future.result(), flush=True)
                except Exception as error:  # the others go on; said at the end
                    failed += 1
                    print(f"failed: {error}", file=sys.stderr, flush=True)
    rows = collect(arguments.runs, arguments.seeds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sst2.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "sst2.md").write_text(table(rows) + "\n")
    print(table(rows))
    if failed:
        sys.exit(f"{failed} runs failed; run the command again to continue them")


if __name__ == "__main__":
    main()
