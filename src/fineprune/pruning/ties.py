"""The test that the weights of a unit belong together, before a step is spent on them.

Names and shapes say where heads and neurons are. A unit is silenced in two ways: where it is read, and at all
of its weights and biases. If nothing else reads it, the model cannot tell the two apart. Norms over several
heads, matrices that are used twice, and names that mean something else fail here.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.pruning.anatomy import place_of
from fineprune.pruning.expansion import Lines
from fineprune.pruning.probe import checked_outputs, difference, outputs, probe_inputs
from fineprune.pruning.units import Grid
from fineprune.pruning.wrapped import transformer_of

_AGREE = 1e-5  # of the largest value, in float32
_CAUSES = {"query_dim": " (rotary and relative positions mix the dims of Q and K; value_dim is free of them)"}
_UNITS_TRIED = 16  # of a ReLU, many are closed on all tokens of a probe


@torch.no_grad()
def check_ties(model: nn.Module, grids: Mapping[str, Grid], probe: Mapping[str, Any] | None = None) -> None:
    """Silence a unit of the first and of the last matrix of each kind in two ways, and compare the answers.

    Args:
        model: The model, not prepared yet; it is left as it was.
        grids: The grids of the matrices that read the units; those without followers are not tested.
        probe: Inputs of the model, by name, or of the transformer in a sentence model; None: made up from its
            configuration.

    Raises:
        FinepruneError: The answers differ, no answer depends on a unit, or no inputs can be made up.
    """
    by_kind: dict[tuple[str, str], list[Grid]] = {}
    for grid in grids.values():
        if grid.followers:
            by_kind.setdefault((grid.kind, place_of(grid.reader).stack), []).append(grid)
    if not by_kind:
        return
    if any(parameter.dtype.itemsize < 4 for parameter in model.parameters() if parameter.is_floating_point()):
        model = copy.deepcopy(model).float()  # the shorter types round more than the test allows
    inputs = _inputs(model, next(iter(by_kind))[0], probe)
    untouched = checked_outputs(transformer_of(model), inputs)
    for found in by_kind.values():
        for grid in dict.fromkeys((found[0], found[-1])):
            _check(model, grid, inputs, untouched)


def _inputs(model: nn.Module, kind: str, probe: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if probe is not None:
        return probe
    model = transformer_of(model)
    if not hasattr(model, "config") or not hasattr(model, "main_input_name"):
        raise FinepruneError(
            f"structure {kind}: {type(model).__name__} has no configuration of transformers to make up "
            "inputs from, on which its units are tested; give some with prepare(…, probe={name: tensor})"
        )
    return probe_inputs(model)


class _Change(NamedTuple):
    """New values of some lines of a parameter, a number or a tensor of them."""

    matrix: str
    parameter: str
    axis: int
    places: Tensor
    values: Tensor | float = 0.0


def _check(model: nn.Module, grid: Grid, inputs: Mapping[str, Any], untouched: list[Tensor]) -> None:
    weight = model.get_submodule(grid.reader).get_parameter("weight")
    size = grid.expansion.reduce(weight.square())
    noisy = grid.kind == "query_dim"  # a new model's rows of Q and K are so small that a probe shows nothing
    drawn = [units for units in _drawn(grid, size) if noisy or any(size[unit] > 0 for unit in units)]
    if not drawn:
        return  # nothing reads them: a model that was pruned before
    for units in drawn:
        with _changed(model, _noise(model, grid, units) if noisy else []):
            whole = outputs(transformer_of(model), inputs) if noisy else untouched
            read = _silenced(model, grid, units, inputs, everywhere=False)
            if difference(whole, read) <= _AGREE:
                continue  # the probe shows nothing of this unit
            apart = difference(read, _silenced(model, grid, units, inputs, everywhere=True))
        if apart <= _AGREE:
            return
        raise FinepruneError(
            f"{grid.reader}: silencing {_named(grid, units)} where it is read and where it is made gives "
            f"answers that differ by {apart:.1e} of the largest value, so its weights do not belong "
            f"together{_CAUSES.get(grid.kind, '')}; use structure='row' or blocks, or leave this part of the "
            "model out with exclude"
        )
    raise FinepruneError(
        f"{grid.reader}: no answer of the model depends on {_named(grid, *drawn)}, so it "
        "cannot be tested which weights belong to it; give inputs on which it does with "
        "prepare(…, probe={name: tensor})"
    )


def _drawn(grid: Grid, size: Tensor) -> list[list[int]]:
    """Return which units are silenced together: a large one, or of dims the same one of each head.

    A single dim changes little, and the dims of one head may depend on each other. The first ones are those
    that rotary positions turn fastest.
    """
    if grid.head_size:
        dims = range(min(_UNITS_TRIED, grid.head_size))
        return [list(range(dim, len(size), grid.head_size)) for dim in dims]
    return [[unit] for unit in size.argsort(descending=True)[:_UNITS_TRIED].tolist()]


def _named(grid: Grid, *drawn: list[int]) -> str:
    numbers = ", ".join(str(units[0]) for units in drawn)
    return f"{grid.kind} {numbers}{' of each head' if grid.head_size else ''}"


def _weights(grid: Grid, units: list[int]) -> list[_Change]:
    """Return changes that silence the weights of some units, those of the reader first."""
    assert isinstance(grid.expansion, Lines)
    places = torch.isin(grid.expansion.unit_of, torch.tensor(units)).nonzero().squeeze(1)
    follow = [_Change(e.matrix, "weight", e.axis, torch.from_numpy(e.of(*units))) for e in grid.followers]
    return [_Change(grid.reader, "weight", grid.expansion.axis, places), *follow]


def _noise(model: nn.Module, grid: Grid, units: list[int]) -> list[_Change]:
    """Return changes that give some units weights of a usual size."""
    generator = torch.Generator().manual_seed(0)
    changes = []
    for change in _weights(grid, units):
        weight = model.get_submodule(change.matrix).get_parameter("weight")
        shape = list(weight.shape)
        shape[change.axis] = len(change.places)
        noise = torch.randn(shape, generator=generator) / weight.shape[1 - change.axis] ** 0.5
        changes.append(change._replace(values=noise.to(weight)))
    return changes


def _silenced(
    model: nn.Module, grid: Grid, units: list[int], inputs: Mapping[str, Any], everywhere: bool
) -> list[Tensor]:
    """Return the answers without some units, and put their weights back."""
    reader, *followers = _weights(grid, units)
    changes = [reader]
    if grid.kind == "query_dim":  # the mask leaves the bias, which may train to any value
        changes.append(_Change(grid.reader, "bias", 0, reader.places, 0.0 if everywhere else 1.0))
    for follower in followers if everywhere else ():
        changes += [follower, follower._replace(parameter="bias", axis=0)]
    with _changed(model, changes):
        return outputs(transformer_of(model), inputs)


@contextlib.contextmanager
def _changed(model: nn.Module, changes: Iterable[_Change]) -> Iterator[None]:
    """Change some lines, those of parameters that are there, and put the old ones back."""
    before: list[tuple[Tensor, Tensor]] = []
    try:
        for change in changes:
            parameter = getattr(model.get_submodule(change.matrix), change.parameter)
            if parameter is not None:
                before.append((parameter, parameter.clone()))
                places = change.places.to(parameter.device)
                if isinstance(change.values, Tensor):
                    parameter.index_copy_(change.axis, places, change.values)
                else:
                    parameter.index_fill_(change.axis, places, change.values)
        yield
    finally:
        for parameter, values in reversed(before):
            parameter.copy_(values)
