"""Cut heads and neurons half by half, each fitted to the dense model (K-prune, Park, Choi and Kang 2024).

A half is an attention or a feed-forward. From the first half to the last: score the units of all halves that
are not cut yet, rank them by score and multiply-add, cut this half to those that the budget pays for, and fit
the columns that stay to the outputs of the dense model.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fineprune.errors import FinepruneError
from fineprune.pruning.calibration.kwon import answers, class_logits, paid
from fineprune.pruning.calibration.layer import DAMPING, as_matrix, factor
from fineprune.pruning.calibration.moments import Moments, has_two_stacks
from fineprune.pruning.expansion import Lines
from fineprune.pruning.probe import evaluating, without_autocast
from fineprune.pruning.units import Grid

_TEMPERATURE = 2.0
_REPRESENTATION = 2.5e-4  # weight of a unit's output beside its effect on the answer


def halves(
    model: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Mapping[str, nn.Module]],
    grids: Mapping[str, Grid],
    density: float,
) -> Iterator[tuple[str, Moments, Tensor]]:
    """Yield for each half its reader's name, moments and units that stay; cut it before taking the next.

    The moments are of (2 inputs,): what the reader reads in the dense model, then what it reads now. The
    units are (units,), bool.

    Args:
        model: The model, which changes on the way.
        batches: Inputs, as mappings or tuples of arguments.
        groups: The readers by name, in the order of their use; those of one weight together.
        grids: The grids of these.
        density: The share of the multiply-adds of all units that stays.
    """
    names = [next(iter(group)) for group in groups]
    budget = density * sum(grids[name].multiply_adds * grids[name].shape[0] for name in names)
    if budget < min(grids[name].multiply_adds for name in names):
        raise FinepruneError(f"density={density:g}: keeps neither a head nor a neuron; give a higher density")
    dense = copy.deepcopy(model)
    for place, (name, group) in enumerate(zip(names, groups, strict=True)):
        scores = _scores(model, dense, batches, groups[place:], grids)
        alive = affordable(scores, grids, budget)[name]
        budget -= int(alive.sum()) * grids[name].multiply_adds
        yield name, _paired(model, dense, batches, group), alive


def affordable(scores: Mapping[str, Tensor], grids: Mapping[str, Grid], budget: float) -> dict[str, Tensor]:
    """Return the units that a budget of multiply-adds pays for, the highest score per multiply-add first.

    A unit that costs more than what is left is passed over.
    """
    costs = torch.cat(
        [torch.full(values.shape, grids[name].multiply_adds) for name, values in scores.items()]
    ).double()
    order = (torch.cat(list(scores.values())).double() / costs).argsort(descending=True, stable=True)
    alive = torch.zeros(len(costs), dtype=torch.bool)
    alive[order] = paid(costs[order], budget)
    return dict(zip(scores, alive.split([len(values) for values in scores.values()]), strict=True))


def fitted(weight: Tensor, gram: Tensor, unit_of: Tensor, alive: Tensor, name: str) -> Tensor:
    """Return the weight W' with the columns of some units that gives nearly the dense model's outputs.

    It minimizes E|W x_dense - W' x|^2 + damping |W - W'|^2.

    Args:
        weight: (outputs, inputs): W.
        gram: (2 inputs, 2 inputs): (2/N) sum z z^T of z = (x_dense, x).
        unit_of: (inputs,): the unit of each column.
        alive: (units,), bool: which remain.
        name: The dotted name, for messages.
    """
    size = weight.shape[1]
    cross, own = gram[:size, size:].clone(), gram[size:, size:].clone()
    damping = DAMPING * own.diagonal().mean() or own.new_ones(())
    cross.diagonal().add_(damping)
    own.diagonal().add_(damping)
    rest = alive[unit_of].nonzero().squeeze(1)
    matrix = torch.zeros_like(weight)
    if len(rest):
        inverse = torch.cholesky_inverse(factor(own[rest][:, rest], name))
        matrix[:, rest] = weight @ cross[:, rest] @ inverse
    return matrix


def distance(weight: Tensor, matrix: Tensor, gram: Tensor) -> float:
    """Return ||W' x - W x_dense|| / ||W x_dense||, of the gram that `fitted` takes."""
    both = torch.cat([weight, -matrix], dim=1)
    dense = weight @ gram[: weight.shape[1], : weight.shape[1]]
    of, moved = float((dense * weight).sum()), float(((both @ gram) * both).sum())
    return (max(moved, 0.0) / of) ** 0.5 if of > 0 else 0.0


def _scores(
    model: nn.Module,
    dense: nn.Module,
    batches: Sequence[Any],
    groups: Sequence[Mapping[str, nn.Module]],
    grids: Mapping[str, Grid],
) -> dict[str, Tensor]:
    """Return the score of each unit: half the curvature of the KL divergence, and the square of its output.

    At the dense model the gradient of KL by a gate is 0; its curvature is the mean over the classes, as the
    dense model gives them, of the squared gradient of log p. A class is drawn for each example.
    """
    readers = {name: module for group in groups for name, module in group.items()}
    first = {name: next(iter(group)) for group in groups for name in group}
    moments = Moments(model, readers)
    gates: list[tuple[str, Tensor]] = []
    squares = {name: torch.zeros(()) for name in first.values()}
    curvature = {name: torch.zeros(grids[name].shape, dtype=torch.float64) for name in first.values()}
    examples, tokens = 0, dict.fromkeys(squares, 0)
    generator, two_stacks = torch.Generator().manual_seed(0), has_two_stacks(model)

    def see(name: str, value: Tensor, batch: Any) -> Tensor:
        rows = moments.rows(name, value.detach(), batch)
        squares[first[name]] = squares[first[name]] + rows.square().sum(0).double().cpu()
        tokens[first[name]] += len(rows)
        several = value.ndim == 3
        gate = torch.ones(len(value) if several else 1, *grids[name].shape, device=value.device)
        gates.append((first[name], gate.requires_grad_()))
        spread = gate[:, _units_of(grids[name]).to(value.device)].to(value.dtype)
        return value * (spread[:, None] if several else spread)

    for batch in batches:
        gates.clear()
        with evaluating(model), without_autocast(model):
            known = class_logits(_call(dense, batch), batch, "k_prune", two_stacks)
            with torch.enable_grad(), _Watching(readers, lambda name, value: see(name, value, batch)):  # noqa: B023
                logits = class_logits(_call(model, batch), batch, "k_prune", two_stacks)
                loss = _drawn_loss(logits, known, batch, generator, two_stacks)
                given = torch.autograd.grad(loss, [gate for _, gate in gates], allow_unused=True)
        examples += len(known[0])
        found: dict[str, Tensor] = {}
        for (name, _), values in zip(gates, given, strict=True):
            if values is not None:
                found[name] = found[name] + values if name in found else values
        for name, values in found.items():
            curvature[name] += values.double().square().sum(0).cpu()
    result = {}
    for name in squares:
        weight = as_matrix(readers[name]).double().square().mean(0).cpu()
        outputs = squares[name] * weight / max(tokens[name], 1)
        units = torch.zeros_like(curvature[name]).index_add_(0, _units_of(grids[name]).cpu(), outputs)
        result[name] = curvature[name] / (2 * examples) + _REPRESENTATION * units
    return result


def _drawn_loss(
    logits: list[Tensor], dense: list[Tensor], batch: Any, generator: torch.Generator, two_stacks: bool
) -> Tensor:
    """Return -log p summed over examples, of classes drawn from the dense model's answers."""
    losses = []
    for entry, known in zip(logits, dense, strict=True):
        likely = (answers(known.detach(), batch, two_stacks) / _TEMPERATURE).softmax(-1).cpu()
        drawn = torch.multinomial(likely, 1, generator=generator)[:, 0].to(entry.device)
        given = answers(entry, batch, two_stacks) / _TEMPERATURE
        losses.append(functional.cross_entropy(given, drawn, reduction="sum"))
    return torch.stack(losses).sum()


def _paired(
    model: nn.Module, dense: nn.Module, batches: Sequence[Any], group: Mapping[str, nn.Module]
) -> Moments:
    """Return the moments of what a reader reads in the dense model and in this one, side by side."""
    moments = Moments(model, group)
    for batch in batches:
        seen: list[list[tuple[str, Tensor]]] = []
        for one in (dense, model):
            inputs: list[tuple[str, Tensor]] = []
            modules = {name: one.get_submodule(name) for name in group}
            with evaluating(one), without_autocast(one), _Watching(modules, _keep_in(inputs)):
                _call(one, batch)
            seen.append(inputs)
        for (name, before), (_, now) in zip(*seen, strict=True):
            moments.take(name, torch.cat([before, now], dim=-1), batch)
    return moments


class _Watching:
    """Let `see` have the name and the input of each call of some modules; it returns the input to use."""

    def __init__(self, modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], Tensor]) -> None:
        self._modules, self._see = modules, see

    def __enter__(self) -> None:
        def hooked(name: str) -> Any:
            return lambda _module, given: (self._see(name, given[0]), *given[1:])

        self._handles = [
            module.register_forward_pre_hook(hooked(name)) for name, module in self._modules.items()
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _keep_in(inputs: list[tuple[str, Tensor]]) -> Callable[[str, Tensor], Tensor]:
    def see(name: str, value: Tensor) -> Tensor:
        inputs.append((name, value))
        return value

    return see


def _call(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def _units_of(grid: Grid) -> Tensor:
    assert isinstance(grid.expansion, Lines)
    return grid.expansion.unit_of
