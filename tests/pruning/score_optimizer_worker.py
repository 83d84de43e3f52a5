"""One of the processes of test_score_optimizer.py: what FSDP2 spreads moves as it does in one process."""

import functools
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

sys.path.append(str(Path(__file__).resolve().parents[1]))

from several import report

from fineprune import PruningConfig, prepare
from fineprune.config import METHODS, SCORE_OPTIMIZERS

STEPS = 20


class Blocks(nn.Module):
    """Fifteen rows do not go evenly into two processes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 15), nn.Tanh(), nn.Linear(15, 16)) for _ in range(2)
        )
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def trained(method, choice, spread):
    model = Blocks()
    pruner = prepare(model, PruningConfig(method, density=0.2, score_optimizer=choice), STEPS)
    for part in (*model.blocks, model) if spread else ():
        fully_shard(part)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    for _ in range(STEPS):
        x = torch.randn(8, 16, generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long())
        (loss + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()
    scores = [target.scores.detach() for target in pruner.targets]
    return [score.full_tensor() if spread else score for score in scores], pruner


def check(method, choice):
    ours, pruner = trained(method, choice, True)
    theirs, one = trained(method, choice, False)
    for mine, whole in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, whole, atol=1e-5)
    for target, other in zip(pruner.targets, one.targets, strict=True):
        assert torch.equal(target.masked.mask, other.masked.mask)


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    learning = [name for name, traits in METHODS.items() if traits.learns_scores and name != "l0"]
    checks = [
        (f"{method}, {choice}", functools.partial(check, method, choice))
        for method in learning
        for choice in SCORE_OPTIMIZERS
    ]
    report(checks, Path(sys.argv[1]))
    distributed.destroy_process_group()
