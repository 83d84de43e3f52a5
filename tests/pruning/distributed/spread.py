"""What the checks of sharded_worker.py share: a small network, its spreading over processes, its training."""

import functools

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fineprune import PruningConfig, prepare

STEPS, ROWS, WIDTH = 8, 12, 5


class Block(nn.Module):
    """Seven rows and five: neither goes evenly into two processes or three."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, 7)
        self.down = nn.Linear(7, WIDTH)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def network():
    torch.manual_seed(0)
    return Network()


def config(method="movement", scope=None, **settings):
    return PruningConfig(method, density=0.3, scope=scope, warmup=1, cooldown=2, **settings)


def rank():
    return distributed.get_rank()


def ranks():
    return distributed.get_world_size()


@functools.cache
def mesh():
    return init_device_mesh("cpu", (ranks(),))


def shard(model, blocks=True, **settings):
    for block in model.blocks if blocks else ():
        fully_shard(block, mesh=mesh(), **settings)
    return fully_shard(model, mesh=mesh(), **settings)


def batches():
    """Inputs and labels of each step, the same everywhere."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        yield torch.randn(ROWS, WIDTH, generator=generator), torch.randint(0, 2, (ROWS,), generator=generator)


def wrapped(engine, model, policy):
    if engine == "ddp":
        return DistributedDataParallel(model)
    if engine.startswith("fsdp"):
        return shard(model, engine == "fsdp", mp_policy=policy)
    return model


def train(engine, settings, accumulate=1, policy=None, autocast=False, look=lambda pruner: None):
    """Train on this process's share of each batch, or on all of it; the losses of the whole batches."""
    model = network()
    pruner = prepare(model, settings, STEPS)
    model = wrapped(engine, model, policy or MixedPrecisionPolicy())
    optimizer = pruner.optimizer(torch.optim.AdamW, 3e-2)
    if pruner.measures:
        share = slice(None) if engine == "one" else slice(rank(), None, ranks())
        rows = [tensor[share].split(1) for tensor in next(batches())]
        pruner.measure_on(
            lambda: (functional.cross_entropy(pruner.model(x), y) for x, y in zip(*rows, strict=True))
        )
    losses = []
    for inputs, labels in batches():
        total = torch.zeros(())
        for part in range(accumulate):
            x, y = (tensor.chunk(accumulate)[part] for tensor in (inputs, labels))
            if engine != "one":
                x, y = (tensor.chunk(ranks())[rank()] for tensor in (x, y))
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(part == accumulate - 1)
            elif engine == "ddp":
                model.require_backward_grad_sync = part == accumulate - 1
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = functional.cross_entropy(model(x).float(), y) + pruner.penalty()
            (loss / accumulate).backward()
            total += loss.detach() / accumulate
        if engine != "one":
            distributed.all_reduce(total)
            total /= ranks()
        losses.append(float(total))
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        pruner.check_masks()
        look(pruner)
    return model, pruner, losses
