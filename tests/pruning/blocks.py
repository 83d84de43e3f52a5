"""The smallest model there is to prune, and a plain loop that trains it."""

import torch
from torch import nn
from torch.nn import functional

TOTAL = 20


class Blocks(nn.Module):
    """Two blocks of two layers, an embedding and a head: the smallest model there is to prune."""

    def __init__(self, tied=False):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(2)
        )
        self.head = nn.Linear(6, 2)
        if tied:
            self.blocks[1][0].weight = self.blocks[0][0].weight

    def forward(self, tokens):
        hidden = self.embedding(tokens).mean(1)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden)


BLOCK_WEIGHTS = 4 * 48


def blocks(seed=0, **options):
    torch.manual_seed(seed)
    return Blocks(**options)


def losses(model, count=4):
    """The losses of batches that are the same ones each time."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        tokens = torch.randint(0, 7, (4, 5), generator=generator)
        yield functional.cross_entropy(model(tokens), (tokens[:, 0] > 3).long())


def train(pruner, steps, seed=0, rate=1e-2, optimizer=None):
    """A plain loop, by default with AdamW over the groups; returns the density after each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = optimizer or torch.optim.AdamW(pruner.parameter_groups(rate, weight_decay=0.01))
    if pruner.measures:
        pruner.measure_on(lambda: losses(pruner.model))
    densities = []
    for _ in range(steps):
        tokens = torch.randint(0, 7, (8, 5), generator=generator)
        optimizer.zero_grad()
        loss = functional.cross_entropy(pruner.model(tokens), (tokens[:, 0] > 3).long())
        (loss + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()
        densities.append(pruner.density)
    return densities
