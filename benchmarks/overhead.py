"""What pruning adds to a training step: ratios to the same dense step.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --only "movement, heads and neurons" "movement, then elements"
    python benchmarks/overhead.py --layers 2 --only "movement, local" soft_movement fisher st3
    python benchmarks/overhead.py --processes 2 --rounds 8
    python benchmarks/overhead.py --shape base --compile --bf16 --selection     # with a GPU

All six layers of MiniLM, batch 32 x 128 tokens, AdamW, embeddings frozen in every variant, interleaved step
by step; the median over rounds of the ratio within a round. With `--processes`, each of one thread, every
step is one of DDP, the dense one as well: the batch is divided, and the last process to be done ends a step.
`sort in forward` is the straightforward way: every forward pass sorts the scores of each matrix for its
mask. Heads and neurons keep half of the weights, and elements of them a tenth. `--shape base` has BERT-
base's shape and random weights. `--selection` times the exact global Top_v over the scores of the last
variant, and its masks. On a GPU, where there is one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    logging,
)

import fineprune
from fineprune.checkpoint.model_folder import minilm_folder
from fineprune.pruning.selection import top_v
from fineprune.pruning.targets import find_targets

VARIANTS = {
    "magnitude, local": {"method": "magnitude"},
    "movement, local": {"method": "movement"},
    "movement, global": {"method": "movement", "scope": "global"},
    "soft_movement": {"method": "soft_movement"},
    "l0": {"method": "l0"},
}
HEADS = {"attention": "head", "feed_forward": "neuron"}
UNITS = {"method": "movement", "scope": "global", "density": 0.5}
VARIANTS |= {
    "movement, heads and neurons": UNITS | {"structure": HEADS},
    "soft_movement, heads and neurons": UNITS
    | {"method": "soft_movement", "scope": None, "structure": HEADS},
    "movement, then elements": UNITS | {"structure": [HEADS | {"density": 0.5}, "element"], "density": 0.1},
}
FURTHER = {name: {"method": name} for name in ("fisher", "admm", "st3", "pdp", "powerprop", "proximal")} | {
    "platon": {"method": "platon", "warmup": 10},  # its first window
    "magnitude, decayed gradients": {"method": "magnitude", "options": {"weight_gradient": "decayed"}},
}
"""Of the methods beside the paper's: with `--only`."""

SORTED = "sort in forward"


class _SortedTopV(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, density):
        order = scores.flatten().argsort(descending=True)
        mask = torch.zeros(scores.numel(), device=scores.device)
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


def model(arguments: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    if arguments.shape == "base":
        loaded = BertForSequenceClassification(BertConfig(num_hidden_layers=arguments.layers or 12))
    else:
        settings = {"num_hidden_layers": arguments.layers} if arguments.layers else {}
        loaded = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2, **settings)
    for module in loaded.modules():
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)
    loaded.config.problem_type = (
        "single_label_classification"  # else the model sets it, and is compiled twice
    )
    return loaded.train().to(device())


def device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def step_of(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict,
    pruner: "fineprune.Pruner | None",
    arguments: argparse.Namespace,
) -> Callable[[], None]:
    if processes() > 1:
        network = nn.parallel.DistributedDataParallel(network)
    if arguments.compile:
        network = torch.compile(network)

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=arguments.bf16):
            loss = network(**batch).loss
        if pruner is not None:
            loss = loss + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if pruner is not None:
            pruner.step()
        synchronize()
        if processes() > 1:
            torch.distributed.barrier()  # or the next variant would pay for the slower process

    return step


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_selection(pruner: "fineprune.Pruner", rounds: int) -> None:
    """Exact global Top_v over the scores, and its masks."""
    scores = [target.scores.detach() for target in pruner.targets]
    masks = [torch.empty_like(score, dtype=torch.bool) for score in scores]
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        top_v(scores, 0.1, masks)
        synchronize()
        times.append(1000 * (time.perf_counter() - begin))
    count = sum(score.numel() for score in scores)
    middle, most = statistics.median(times[1:]), max(times[1:])
    print(f"global selection over {count:,} scores: {middle:.2f} ms, at most {most:.2f}")


def start_again(count: int) -> None:
    """Run the same command as so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, __file__, *sys.argv[1:]], env=one_thread, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--shape", choices=("minilm", "base"), default="minilm")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--layers", type=int, help="fewer than the model has, to try it out")
    choices = [*VARIANTS, *FURTHER, SORTED]
    parser.add_argument("--only", nargs="*", choices=choices, default=[*VARIANTS, SORTED])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--selection", action="store_true")
    arguments = parser.parse_args()
    if arguments.processes > processes():
        start_again(arguments.processes)
        return
    if processes() > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (arguments.batch, arguments.tokens), generator=generator)
    ids = ids.chunk(processes())[int(os.environ.get("RANK", "0"))].to(device())
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    dense = model(arguments)
    trainable = [p for p in dense.parameters() if p.requires_grad]
    steps = {"dense": step_of(dense, torch.optim.AdamW(trainable, lr=3e-5), batch, None, arguments)}
    pruner = None
    for name, settings in (VARIANTS | FURTHER).items():
        if name not in arguments.only:
            continue
        network = model(arguments)
        # Four steps in, the schedule has left the warm-up, so every measured step selects.
        config = fineprune.PruningConfig(**{"density": 0.1, "warmup": 0, "cooldown": 1} | settings)
        pruner = fineprune.prepare(network, config, total_steps=arguments.rounds * 4)
        optimizer = pruner.optimizer(torch.optim.AdamW, 3e-5)
        steps[name] = step_of(network, optimizer, batch, pruner, arguments)
    if SORTED in arguments.only:
        network = model(arguments)
        for module in find_targets(network).values():
            parametrize.register_parametrization(module, "weight", _SortInForward(module.weight))
        trainable = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=3e-5)
        steps[SORTED] = step_of(network, optimizer, batch, None, arguments)

    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.rounds + 2):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
    if processes() > 1:
        torch.distributed.destroy_process_group()
    if os.environ.get("RANK", "0") != "0":
        return
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    size = f"batch {arguments.batch} x {arguments.tokens}"
    print(f"{size}, {processes()} processes, {torch.get_num_threads()} threads, {where}")
    print("| step | ratio to dense, median | middle half of the rounds |")
    print("|---|---|---|")
    for name in steps:
        ratios = [own / base for own, base in zip(times[name], times["dense"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {middle:.2f} | {low:.2f} - {high:.2f} |")
    if arguments.selection and pruner is not None:
        time_selection(pruner, arguments.rounds)


if __name__ == "__main__":
    main()
