"""Choose heads and neurons of a whole model by Fisher information (Kwon et al. 2022).

A gate of 1 on each unit has the gradient g of the loss of a batch; a unit's importance is the sum of g^2 over
the batches. Heads and neurons share a budget of multiply-adds. In each layer units are then swapped while
that lowers the squared norm of the sum of g over what is removed, which units that go together may raise.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fineprune.errors import FinepruneError
from fineprune.pruning.calibration.moments import has_two_stacks, real_tokens
from fineprune.pruning.expansion import Lines
from fineprune.pruning.probe import evaluating
from fineprune.pruning.units import Grid


def choose_units(
    model: nn.Module,
    batches: Iterable[Any],
    readers: Mapping[str, nn.Module],
    grids: Mapping[str, Grid],
    density: float,
) -> dict[str, Tensor]:
    """Return which units of each grid stay, bool, by the name of the matrix that reads them.

    Args:
        model: The model.
        batches: Inputs, as mappings or tuples of arguments. Where the model computes no loss of them, it is
            that of labels drawn from its own answers.
        readers: The matrices that read the units, by name.
        grids: The grids of these.
        density: The share of the multiply-adds of all units that stays.
    """
    gradients = gate_gradients(model, batches, readers, grids)
    importance = {name: values.square().sum(0) for name, values in gradients.items()}
    alive = search(importance, grids, density)
    return {name: swapped(gradients[name], kept) for name, kept in alive.items()}


def gate_gradients(
    model: nn.Module, batches: Iterable[Any], readers: Mapping[str, nn.Module], grids: Mapping[str, Grid]
) -> dict[str, Tensor]:
    """Return the gradient of the loss of each batch by the gate of each unit, (batches, units).

    Readers of one weight share their gates, by the name of the first of them.

    Raises:
        FinepruneError: All of them are 0.
    """
    device = next(model.parameters()).device
    first: dict[int, str] = {}
    for name, module in readers.items():
        first.setdefault(id(module.get_parameter("weight")), name)
    gates = {
        name: torch.ones(grids[name].shape, device=device, requires_grad=True) for name in first.values()
    }
    found: dict[str, list[Tensor]] = {name: [] for name in gates}
    handles = [
        module.register_forward_pre_hook(
            _gated(gates[first[id(module.get_parameter("weight"))]], grids[name])
        )
        for name, module in readers.items()
    ]
    generator, two_stacks = torch.Generator().manual_seed(0), has_two_stacks(model)
    try:
        with torch.enable_grad(), evaluating(model):
            for batch in batches:
                output = model(**batch) if isinstance(batch, Mapping) else model(*batch)
                loss = _loss(output, batch, generator, two_stacks)
                given = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
                for name, values in zip(gates, given, strict=True):
                    units = gates[name] if values is None else values
                    found[name].append(torch.zeros_like(units) if values is None else values)
    finally:
        for handle in handles:
            handle.remove()
    gradients = {name: torch.stack(rows).double().cpu() for name, rows in found.items()}
    if not any(values.any() for values in gradients.values()):
        raise FinepruneError(
            "method='kwon': the loss of these batches depends on no head or neuron, so all rank alike; use "
            "method='sparsegpt'"
        )
    return gradients


def search(importance: Mapping[str, Tensor], grids: Mapping[str, Grid], density: float) -> dict[str, Tensor]:
    """Return the units of largest importance in all that a share of the multiply-adds pays for.

    For each number of the best heads the best neurons fill the rest of the budget. Units of one kind that
    differ in multiply-adds are ranked by their importance for each.
    """
    kinds: dict[str, list[str]] = {}
    for name in importance:
        kinds.setdefault(grids[name].kind, []).append(name)
    values, costs, order = {}, {}, {}
    for kind, names in kinds.items():
        each = torch.cat(
            [importance[n].double().new_full(importance[n].shape, grids[n].multiply_adds) for n in names]
        )
        every = torch.cat([importance[name] for name in names])
        order[kind] = (every / (each / each.max())).argsort(descending=True, stable=True)
        values[kind], costs[kind] = every[order[kind]], each[order[kind]]
    first, *rest = sorted(kinds, key=lambda kind: float(costs[kind].max()), reverse=True)
    budget = density * sum(float(each.sum()) for each in costs.values())
    of_first = paid(costs[first], budget).nonzero().squeeze(1)
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})
    for count in range(len(of_first) + 1):
        chosen = {first: of_first[:count]}
        left = budget - float(costs[first][chosen[first]].sum())
        chosen |= {kind: paid(costs[kind], left).nonzero().squeeze(1) for kind in rest}
        total = sum(float(values[kind][places].sum()) for kind, places in chosen.items())
        best = max(best, (total, chosen), key=lambda entry: entry[0])
    if not any(map(len, best[1].values())):
        cheapest = min(costs, key=lambda kind: float(costs[kind].min()))
        raise FinepruneError(f"density={density:g}: keeps less than one {cheapest}")
    alive: dict[str, Tensor] = {}
    for kind, places in best[1].items():
        flags = torch.zeros(len(values[kind]), dtype=torch.bool)
        flags[order[kind][places]] = True
        sizes = [len(importance[name]) for name in kinds[kind]]
        alive |= dict(zip(kinds[kind], flags.split(sizes), strict=True))
    return alive


def paid(costs: Tensor, budget: float) -> Tensor:
    """Return which of some units a budget pays for, the first ones first; one that costs too much is skipped.

    Args:
        costs: (units,), float64: their multiply-adds, the best unit first.
        budget: Of multiply-adds.
    """
    alive = costs.cumsum(0) <= budget
    budget -= float(costs[alive].sum())
    while len(more := (~alive & (costs <= budget)).nonzero()):
        alive[more[0]] = True
        budget -= float(costs[more[0]])
    return alive


def swapped(gradients: Tensor, alive: Tensor) -> Tensor:
    """Return as many units, after the swaps that lower |sum of g over what is removed|^2, the best first.

    Args:
        gradients: (batches, units).
        alive: (units,), bool.
    """
    alive = alive.clone()
    fisher = gradients.mT @ gradients
    for _ in range(len(alive)):
        kept, gone = alive.nonzero().squeeze(1), (~alive).nonzero().squeeze(1)
        if not len(kept) or not len(gone):
            break
        with_gone = fisher[:, gone].sum(1)  # F r
        change = (fisher.diagonal()[gone] - 2 * with_gone[gone])[:, None]
        change = change + (fisher.diagonal()[kept] + 2 * with_gone[kept])[None] - 2 * fisher[gone][:, kept]
        place = int(change.argmin())
        if not float(change.flatten()[place]) < -1e-9 * float(fisher.diagonal().sum()):
            break
        alive[gone[place // len(kept)]] = True
        alive[kept[place % len(kept)]] = False
    return alive


def _gated(gate: Tensor, grid: Grid) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """Return a hook that multiplies what a matrix reads by the gates of its units."""
    expansion = grid.expansion
    assert isinstance(expansion, Lines)
    unit_of = expansion.unit_of

    def hook(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        value, *others = given
        return (value * gate[unit_of.to(gate.device)].to(value.dtype), *others)

    return hook


def _loss(output: Any, batch: Any, generator: torch.Generator, two_stacks: bool) -> Tensor:
    """Return the loss that a model gives, or that of labels drawn from its answers."""
    loss = getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss.float()
    losses = []
    for logits in class_logits(output, batch, "kwon", two_stacks):
        entry = answers(logits, batch, two_stacks)
        drawn = torch.multinomial(entry.detach().softmax(-1).cpu(), 1, generator=generator)
        losses.append(functional.cross_entropy(entry, drawn[:, 0].to(entry.device)))
    return torch.stack(losses).sum()


def class_logits(output: Any, batch: Any, method: str, two_stacks: bool = False) -> list[Tensor]:
    """Return the logits of classes that a model gives, in float32; the last axis is that of the classes.

    Where the classes are the tokens of a text, no padded one can be drawn. `two_stacks` is said of a model
    whose answers are its decoder's.

    Raises:
        FinepruneError: There are none; the message names the method that needs them.
    """
    known, mask = [], real_tokens(batch, two_stacks)
    for name in ("logits", "start_logits", "end_logits"):
        entry = getattr(output, name, None)
        if isinstance(entry, Tensor):
            entry = entry.float()
            if name != "logits" and mask is not None and mask.shape == entry.shape:
                entry = entry.masked_fill(~mask, torch.finfo(torch.float32).min)
            known.append(entry)
    if not known or any(entry.shape[-1] < 2 for entry in known):
        needs, remedy = (
            ("gives no loss on these batches, and no", "give batches with labels, or ")
            if method == "kwon"
            else ("gives no", "")
        )
        raise FinepruneError(
            f"method={method!r}: the model {needs} logits of classes to draw labels from; "
            f"{remedy}use method='sparsegpt'"
        )
    return known


def answers(logits: Tensor, batch: Any, two_stacks: bool = False) -> Tensor:
    """Return logits as (answers, classes): one for each example, or for each token that is no padding."""
    mask = real_tokens(batch, two_stacks)
    per_token = mask is not None and logits.ndim == 3 and logits.shape[:2] == mask.shape
    return logits[mask] if per_token else logits.flatten(0, -2)
