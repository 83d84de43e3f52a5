"""Cut a trained model without labels: matrix by matrix, so that each gives nearly the output that it gave."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fineprune._messages import choose
from fineprune.config import METHODS, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.pruning.calibration import alps, k_prune, magnitude, sparsegpt, units, wanda
from fineprune.pruning.calibration.calibrated import Calibrated, CutMatrix
from fineprune.pruning.calibration.checks import checked, refuse_several_labels, warn_of_batches
from fineprune.pruning.calibration.kwon import choose_units
from fineprune.pruning.calibration.layer import Layer, as_matrix
from fineprune.pruning.calibration.moments import Moments, precise
from fineprune.pruning.calibration.passes import Passes
from fineprune.pruning.expansion import Lines
from fineprune.pruning.followers import followers_of
from fineprune.pruning.selection import keep_count
from fineprune.pruning.structures import grids_of, rankings
from fineprune.pruning.targets import repeated_blocks
from fineprune.pruning.ties import check_ties
from fineprune.pruning.units import Grid
from fineprune.structure import parts_of

CUTS: dict[str, Callable[[Layer, int], Tensor]] = {
    "magnitude": magnitude.cut,
    "wanda": wanda.cut,
    "sparsegpt": sparsegpt.cut,
    "alps": alps.cut,
}
"""The ways to cut single weights, the fastest first."""

UNIT_CUTS = {"wanda": units.by_norms, "sparsegpt": units.fitted}
"""The ways to cut the same number of heads and neurons in each layer, the fastest first."""

KWON, K_PRUNE = "kwon", "k_prune"
"""The ways to cut heads and neurons of the whole model by gradients of its answers."""


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    density: float = 0.5,
    method: str | None = None,
    structure: Any = "element",
    targets: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> Calibrated:
    """Cut a trained model to a density without labels and without training, in place.

    Each matrix keeps the same share of its weights, or each layer of its heads and neurons; by "kwon"
    and "k_prune" the whole model keeps a share of the multiply-adds of its heads and neurons. Matrices are
    cut in the order in which the model uses them, and the inputs of each are those that come out of what was
    cut before. `shrink` removes heads and neurons afterwards.

    Args:
        model: A trained model, in float; it becomes an ordinary one with zeros.
        batches: Inputs of the model, such as a data loader's: mappings of its arguments, tuples or tensors.
            Labels are not needed. A few hundred texts of the task are enough.
        density: The share that remains, in (0, 1].
        method: "magnitude" and "wanda" choose what remains; "sparsegpt" and "alps" correct it, too. None:
            "alps"; of heads and neurons, which take "kwon", "k_prune", "wanda" or "sparsegpt", the last.
        structure: "element", or {"attention": "head", "feed_forward": "neuron"}, as in `PruningConfig`.
        targets: Patterns of the linear layers to cut, as in `PruningConfig`.
        exclude: Patterns of layers to leave out.

    Raises:
        FinepruneError: A setting is wrong; the model is prepared, packed or sharded, or carries adapters;
            there are no batches, the model does not take them, they do not reach a matrix, or values are not
            finite. The model is as it was.
    """
    started = time.perf_counter()
    by_size = next(name for name, traits in METHODS.items() if traits.order == 0)
    patterns: Any = {"targets": targets, "exclude": exclude}
    config = PruningConfig(by_size, density, scope="local", structure=structure, **patterns)
    cuts = list(CUTS) if config.structure == "element" else [KWON, K_PRUNE, *UNIT_CUTS]
    if config.structure == "element" and method in (KWON, K_PRUNE):
        raise FinepruneError(
            f"method={method!r}: cuts heads and neurons; give structure={{'attention': 'head', "
            "'feed_forward': 'neuron'} (--units); for single weights allowed are " + ", ".join(cuts)
        )
    method = cuts[-1] if method is None else choose(method, cuts, "method")
    whole = method in (KWON, K_PRUNE)
    if whole:  # all layers share one budget, and one may lose all its heads
        config = replace(config, scope="global")
    matrices = checked(model, config)
    (grids,) = grids_of(model, matrices, config)
    readers = {name: matrices[name] for name in grids}
    passes = Passes(model, batches, readers, repeated_blocks(model))
    check_ties(model, grids, passes.batches[0] if isinstance(passes.batches[0], Mapping) else None)
    alive: dict[str, Tensor] = {}
    if whole:
        refuse_several_labels(model, passes.batches[0], method)
    if whole and any(part.density is not None for part in parts_of(config.structure).values()):
        raise FinepruneError(
            f"method={method!r}: shares one density among heads and neurons; give no part its own"
        )
    if method == KWON:
        alive = choose_units(model, passes.batches, readers, grids, density)
    work = _Work(model, method, grids, config, alive)
    try:
        groups = _by_weight(readers, passes.order)
        if method == K_PRUNE:
            for name, moments, units_left in k_prune.halves(model, passes.batches, groups, grids, density):
                (modules,) = (group for group in groups if name in group)
                work.fit(modules, moments, units_left)
            groups = []
        for modules in groups:
            moments = Moments(model, modules)
            passes.inputs(list(modules), moments.take)
            work.cut(modules, moments)
    except BaseException:
        work.undo()
        raise
    finally:
        passes.close()
    widest = max(as_matrix(module).shape[1] for module in readers.values())
    warn_of_batches(0 if method == by_size else widest, work.tokens, work.padded)
    return Calibrated(method, work.rows(), work.tokens, time.perf_counter() - started)


class _Work:
    """The matrices cut so far, what they were, and how far their outputs moved."""

    def __init__(
        self,
        model: nn.Module,
        method: str,
        grids: Mapping[str, Grid],
        config: PruningConfig,
        alive: Mapping[str, Tensor],
    ) -> None:
        self._model, self._method, self._grids, self._alive = model, method, grids, alive
        names = list(grids)
        rankings_of = rankings(list(grids.values()), config.levels[0], config.density)
        self._densities = {names[index]: share for members, share in rankings_of for index in members}
        self._before: dict[str, Tensor] = {}
        self._weights: set[int] = set()
        self._errors: dict[str, float] = {}
        self.tokens, self.padded = 0, False

    def cut(self, modules: Mapping[str, nn.Module], moments: Moments) -> None:
        """Cut the matrix of some modules, and what follows it, by the inputs that it reads."""
        name, module = next(iter(modules.items()))
        grid, density = self._grids[name], self._densities[name]
        self.tokens, self.padded = max(self.tokens, moments.tokens), self.padded or moments.padded
        self._keep(name)
        layer = _layer(name, module, moments)
        if isinstance(grid.expansion, Lines):
            if module._parameters.get("bias") is not None:
                layer = replace(layer, gram=moments.centered.to(layer.weight.device))
            unit_of = grid.expansion.unit_of.to(layer.weight.device)
            if name in self._alive:
                alive = self._alive[name].to(unit_of.device)
                matrix = units.refitted(layer, unit_of, alive)
            else:
                matrix, alive = UNIT_CUTS[self._method](layer, unit_of, keep_count(density, grid.shape[0]))
            self._cut_units(modules, (layer.weight - matrix) @ moments.mean.to(matrix.device), alive)
        else:
            matrix = CUTS[self._method](layer, keep_count(density, layer.weight.numel()))
        _write(module, matrix, name)
        self._errors[name] = layer.error(matrix)

    def fit(self, modules: Mapping[str, nn.Module], moments: Moments, alive: Tensor) -> None:
        """Cut a half to some units and fit it to the dense model, by the moments of `k_prune.halves`."""
        name, module = next(iter(modules.items()))
        self.tokens, self.padded = max(self.tokens, moments.tokens), self.padded or moments.padded
        self._keep(name)
        centered = module._parameters.get("bias") is not None
        layer = _layer(name, module, moments, centered)
        expansion = self._grids[name].expansion
        assert isinstance(expansion, Lines)
        alive = alive.to(layer.weight.device)
        unit_of = expansion.unit_of.to(alive.device)
        matrix = k_prune.fitted(layer.weight, layer.gram, unit_of, alive, name)
        both = torch.cat([layer.weight, -matrix], dim=1)
        self._cut_units(modules, both @ moments.mean.to(both.device), alive)
        self._errors[name] = k_prune.distance(layer.weight, matrix, layer.gram)
        _write(module, matrix, name)

    def _cut_units(self, modules: Mapping[str, nn.Module], missing: Tensor, alive: Tensor) -> None:
        """Add to the readers' biases what is missing of their mean output, and zero the followers."""
        biases = {id(module._parameters.get("bias")): name for name, module in modules.items()}
        for name in biases.values():  # several modules may share one
            bias = modules[name]._parameters.get("bias")
            if bias is not None:
                self._before[f"{name}.bias"] = bias.detach().clone()
                bias.add_(missing.to(bias.dtype))
        for name in modules:
            for follower in followers_of(self._model, self._grids[name]):
                self._keep(follower.lines.matrix)
                follower.zero(~alive)

    def undo(self) -> None:
        """Give all weights their values of before."""
        for name, values in self._before.items():
            self._model.get_parameter(name).copy_(values)

    def rows(self) -> tuple[CutMatrix, ...]:
        """Return what remains of each matrix."""
        found = []
        for name in (key.removesuffix(".weight") for key in self._before if key.endswith(".weight")):
            weight = self._model.get_submodule(name).get_parameter("weight")
            kept = int(torch.count_nonzero(weight))
            found.append(CutMatrix(name, tuple(weight.shape), kept, weight.numel(), self._errors.get(name)))
        return tuple(found)

    def _keep(self, name: str) -> None:
        weight = self._model.get_submodule(name).get_parameter("weight")
        if id(weight) not in self._weights:  # several layers may share it
            self._weights.add(id(weight))
            self._before[f"{name}.weight"] = weight.detach().clone()


def _by_weight(matrices: Mapping[str, nn.Module], order: Iterable[str]) -> list[dict[str, nn.Module]]:
    """Return the modules of each weight, in an order of their names: some models use one weight twice."""
    groups: dict[int, dict[str, nn.Module]] = {}
    for name in order:
        groups.setdefault(id(matrices[name].get_parameter("weight")), {})[name] = matrices[name]
    return list(groups.values())


def _layer(name: str, module: nn.Module, moments: Moments, centered: bool = False) -> Layer:
    weight = as_matrix(module)
    gram = (moments.centered if centered else moments.gram).to(weight.device)
    if not bool(gram.isfinite().all()):
        raise FinepruneError(
            f"{name}: what it reads on these batches is nan or infinite; the model is damaged, or its type "
            "too short: load it in float32"
        )
    return Layer(name, weight.to(precise(weight.device)), gram)


def _write(module: nn.Module, matrix: Tensor, name: str) -> None:
    weight = as_matrix(module)
    values = matrix.to(weight.dtype)
    if not bool(values.isfinite().all()):
        raise FinepruneError(f"{name}: weights are nan or infinite after the cut; load the model in float32")
    weight.copy_(values)
