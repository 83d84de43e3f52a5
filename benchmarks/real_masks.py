"""What real masks do to the speed: a fine-pruned model in the engine beside random masks of its density.

    python benchmarks/real_masks.py runs/mpnet-10 ...    run or model folders

Each model runs three times in the engine: as it was pruned; with the weights of each matrix at random places
of that matrix ("by matrix"); and with the model's density in every matrix, at random places ("uniform").
Only the first has empty heads and neurons. All take turns with torch on one batch of random tokens.
Writes real_masks.{json,md} into benchmarks/results.
"""

import argparse
import copy
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

import fineprune
import fineprune_runtime
from fineprune._files import write_json, write_text
from fineprune._transformers_output import quiet
from fineprune.checkpoint.loading import open_model
from fineprune.inference.bench.measure import example
from fineprune.inference.bench.timing import compare, interleave, machine
from fineprune.pruning.summary import summary
from fineprune.pruning.targets import find_targets

ROOT = Path(__file__).parent.parent
MASKS = ("real", "by matrix", "uniform")


@torch.no_grad()
def shuffled(model: nn.Module, uniform: bool) -> nn.Module:
    """A copy of a model with its weights at random places: as many in each matrix, or equal shares."""
    random = torch.Generator().manual_seed(0)
    model = copy.deepcopy(model)
    weights = [module.get_parameter("weight") for module in find_targets(model).values()]
    left = [weight[weight != 0] for weight in weights]
    share = sum(map(len, left)) / sum(weight.numel() for weight in weights)
    pool = torch.cat(left)
    for weight, own in zip(weights, left, strict=True):
        values = own
        if uniform:
            values = pool[torch.randint(len(pool), (round(share * weight.numel()),), generator=random)]
        places = torch.randperm(weight.numel(), generator=random)[: len(values)]
        weight.zero_().view(-1)[places] = values
    return model


def measure(folder: Path, batch: int, length: int, threads: int, rounds: int) -> dict[str, Any]:
    """The times of one model with the three masks, in each type of the engine."""
    model = open_model(folder).model.float().eval()
    inputs = example(model, batch, length)
    made = {"real": model, "by matrix": shuffled(model, False), "uniform": shuffled(model, True)}
    calls: dict[Any, Any] = {"torch": lambda: answer(model, inputs)}
    for dtype in fineprune_runtime.dtypes():
        for mask, each in made.items():
            fast = fineprune.accelerate(copy.deepcopy(each), dtype, threads)
            calls[dtype, mask] = lambda fast=fast: answer(fast, inputs)
    times = compare(interleave(calls, rounds), "torch")
    return {
        "model": folder.parent.name if folder.name == "model" else folder.name,
        "density": summary(model).density,
        "batch": batch,
        "length": length,
        "rounds": rounds,
        "torch_ms": times["torch"].milliseconds,
        "ratios": {
            dtype: {mask: times[dtype, mask]._asdict() for mask in MASKS}
            for dtype in fineprune_runtime.dtypes()
        },
        "machine": machine(threads),
    }


@torch.inference_mode()
def answer(model: Any, inputs: dict[str, Tensor]) -> Any:
    """One answer, which nobody looks at."""
    return model(**inputs)


def table(models: list[dict[str, Any]]) -> str:
    """A line for each model and type."""
    lines = [f"| model | density | engine | {' | '.join(MASKS)} |", f"|---|---|---|{'---:|' * len(MASKS)}"]
    for model in models:
        for dtype, row in model["ratios"].items():
            cells = [f"{row[mask]['ratio']:.1f}" for mask in MASKS]
            lines.append(f"| {model['model']} | {model['density']:.0%} | {dtype} | {' | '.join(cells)} |")
    first = models[0]
    here = first["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    lines += [
        "",
        f"Times torch's speed, {first['batch']} x {first['length']} tokens, medians of {first['rounds']} "
        f"interleaved rounds; {here['threads']} threads, {here['processor']}, "
        f"levels {', '.join(here['levels'])}; {versions}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with quiet():
        models = [
            measure(folder, arguments.batch, arguments.length, arguments.threads, arguments.rounds)
            for folder in arguments.folders
        ]
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json(arguments.results / "real_masks.json", models)
    write_text(arguments.results / "real_masks.md", table(models) + "\n")
    print(table(models))


if __name__ == "__main__":
    main()
