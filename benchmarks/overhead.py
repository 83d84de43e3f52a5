"""What pruning adds to a training step of MiniLM: ratios to the same dense step.

    python benchmarks/overhead.py

All six layers, batch 32 x 128 tokens, AdamW, embeddings frozen in every variant, interleaved
step by step; the median over rounds of the ratio within a round. `sort in forward` is the
straightforward way: every forward pass sorts the scores of each matrix for its mask.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import AutoModelForSequenceClassification, logging

import fineprune
from fineprune.pruning.targets import find_targets
from fineprune.tasks.modeling import minilm_folder

VARIANTS = {
    "magnitude, local": {"method": "magnitude"},
    "movement, local": {"method": "movement"},
    "movement, global": {"method": "movement", "scope": "global"},
    "soft_movement": {"method": "soft_movement"},
    "l0": {"method": "l0"},
}


class _SortedTopV(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, density):
        order = scores.flatten().argsort(descending=True)
        mask = torch.zeros(scores.numel())
        mask[order[: round(density * scores.numel())]] = 1
        return mask.view_as(scores)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _SortInForward(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * _SortedTopV.apply(self.scores, 0.1)


def model() -> nn.Module:
    torch.manual_seed(0)
    loaded = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2)
    for module in loaded.modules():
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)
    return loaded.train()


def step_of(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict,
    pruner: "fineprune.Pruner | None",
) -> Callable[[], None]:
    def step() -> None:
        loss = network(**batch).loss
        if pruner is not None:
            loss = loss + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if pruner is not None:
            pruner.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (32, arguments.tokens), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    dense = model()
    trainable = [p for p in dense.parameters() if p.requires_grad]
    steps = {"dense": step_of(dense, torch.optim.AdamW(trainable, lr=3e-5), batch, None)}
    for name, settings in VARIANTS.items():
        network = model()
        # Four steps in, the schedule has left the warm-up, so every measured step selects.
        config = fineprune.PruningConfig(density=0.1, warmup=0, cooldown=1, **settings)
        pruner = fineprune.prepare(network, config, total_steps=arguments.rounds * 4)
        steps[name] = step_of(network, torch.optim.AdamW(pruner.parameter_groups(3e-5)), batch, pruner)
    network = model()
    for module in find_targets(network).values():
        parametrize.register_parametrization(module, "weight", _SortInForward(module.weight))
    trainable = [p for p in network.parameters() if p.requires_grad]
    steps["sort in forward"] = step_of(network, torch.optim.AdamW(trainable, lr=3e-5), batch, None)

    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.rounds + 2):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
    print(f"batch 32 x {arguments.tokens}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    print("| step | ratio to dense, median | middle half of the rounds |")
    print("|---|---|---|")
    for name in steps:
        ratios = [own / base for own, base in zip(times[name], times["dense"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {middle:.2f} | {low:.2f} - {high:.2f} |")


if __name__ == "__main__":
    main()
