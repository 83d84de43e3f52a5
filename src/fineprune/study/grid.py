"""Read a study: one YAML file that describes many runs as a grid over the settings to compare.

    name: mine                                    # the runs go to runs/mine
    recipes:                                      # a label for each task, and its recipe, with
      sst2: [small-sst2, training.steps=600]      # overrides as on the command line of `fineprune run`
      mnli: small-mnli
    overrides: [training.batch_size=16]           # of all runs
    axes:
      method: [dense, magnitude, movement]
      density: [0.1, 0.03]
      scope: [local, global]                      # optional: the method's own
      structure:                                  # optional: the recipe's
        element: element
        heads: {attention: head, feed_forward: neuron}
      distillation: [false, true]                 # optional: false
      variant:                                    # optional: settings to compare, each with a name
        usual: []
        slow: [training.learning_rate=2e-4]
      seed: [0, 1]                                # optional: 0
    skip: [{method: magnitude, density: 0.03}]    # optional: runs to leave out
    teacher: dense                                # optional, or "recipe": the recipe names a teacher
    start: recipe                                 # optional, or "dense": pruning begins from the dense runs
    claims: false                                 # optional: true tests the paper's claims on the runs

A run of `keep_zeros` has no density, since it keeps the zeros that the recipe's model has. A dense run has
neither density nor scope nor teacher: there is one for each task and seed. It is the teacher of the runs
with distillation, and is made for them where the axes do not list it. With `start: dense` it is also the
model that the others prune; recipes of two stages need that, and the dense runs are then their first stages.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Self

from fineprune._messages import choose
from fineprune._validation import check_keys, is_number, shown
from fineprune.config import METHODS, PruningConfig, Scope, method_name
from fineprune.errors import FinepruneError
from fineprune.study.axes import (
    AXES,
    ELEMENT,
    axis,
    check_label,
    check_overrides,
    matches,
    rules,
    structures,
    texts,
    variants,
)
from fineprune.study.axes import DENSE as DENSE
from fineprune.training.run.builtin_recipes import locate
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.recipe_file import read_yaml

FOLDER = Path(__file__).resolve().parent / "studies"
"""The folder of the studies in the package."""

_RECIPE = "recipe"
_KEYS = ("name", "recipes", "overrides", "axes", "skip", "teacher", "start", "claims")


@dataclass(frozen=True)
class Cell:
    """The settings of one run in terms of the study; its name is that of the run's folder."""

    task: str
    method: str
    """One of `METHODS`, or "dense"."""

    density: float | None
    """None: dense, or the zeros that the model came with."""

    scope: Scope | None
    """None: the method's own, and of the dense run."""

    distillation: bool
    seed: int
    variant: str | None = None
    """The name of its other settings in the study, or in words how they differ in a folder; None: none."""

    structure: str | None = None
    """The name of its structure in the study; None: single weights, or a structure that is no axis."""

    @property
    def selection(self) -> Scope | None:
        """Local or global, also where it is the method's own; None for dense."""
        return None if self.method == DENSE else self.scope or METHODS[self.method].scopes[0]

    @property
    def by_axis(self) -> dict[str, Any]:
        """The values by axis, with the method's own scope by its name."""
        return asdict(self) | {"scope": self.selection, "structure": self.structure or ELEMENT}

    @property
    def pruning(self) -> dict[str, Any]:
        """The settings of `PruningConfig` of a run that is not dense."""
        values = {"method": self.method, "density": self.density, "scope": self.scope}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def name(self) -> str:
        """Task, method, structure, density, scope if it is not the method's own, teacher, seed, variant."""
        method = ".".join(filter(None, (self.method, self.structure)))
        return "-".join(filter(None, (self.task, method, self.ending, self.variant)))

    @property
    def ending(self) -> str:
        """The middle of its name: density, scope, teacher, seed."""
        density = "" if self.density is None else f"{self.density:g}"
        distilled = "distilled" if self.distillation else ""
        return "-".join(filter(None, (density, self.scope or "", distilled, f"s{self.seed}")))


class Run(NamedTuple):
    """A run of the grid with its recipe, and the dense run that must finish before it."""

    cell: Cell
    recipe: Recipe
    teacher: str | None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.cell.name


@dataclass(frozen=True)
class Study:
    """The grid, checked. `Study.load` reads one from a file."""

    name: str
    recipes: dict[str, tuple[str, ...]]
    """For each task its recipe, then overrides."""

    methods: tuple[str, ...]
    densities: tuple[float, ...] = ()
    scopes: tuple[Scope, ...] = ()
    distillation: tuple[bool, ...] = (False,)
    variants: Mapping[str | None, tuple[str, ...]] = field(default_factory=lambda: {None: ()})
    """The overrides of each, by name; without the axis, one without a name."""

    structures: Mapping[str | None, Any] = field(default_factory=lambda: {None: None})
    """The value of each, by name; None: the recipe's own. Single weights are named None."""

    seeds: tuple[int, ...] = (0,)
    overrides: tuple[str, ...] = ()
    skip: tuple[dict[str, Any], ...] = ()
    teacher: str = DENSE
    start: str = _RECIPE
    claims: bool = False
    """It repeats the paper: its tables say which claims of the paper hold."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file, or a study of the package by its name. Raises `FinepruneError`."""
        path = locate(path, FOLDER, "study")
        values = read_yaml(path, "study")
        try:
            return cls.from_dict(values)
        except FinepruneError as error:
            raise FinepruneError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Check every key and value; raises `FinepruneError` with the first that is wrong."""
        check_keys(values, _KEYS, "study")
        for key in ("name", "recipes", "axes"):
            if key not in values:
                raise FinepruneError(f"study: {key} is missing")
        name, recipes, axes = values["name"], values["recipes"], values["axes"]
        check_label("name", name)
        if not isinstance(recipes, Mapping) or not recipes:
            raise FinepruneError(
                f"recipes={shown(recipes)}: give a recipe for each task, as {{sst2: small-sst2}}"
            )
        overrides = texts("overrides", values.get("overrides") or [])
        check_overrides("overrides", overrides)
        named: dict[str, tuple[str, ...]] = {}
        for task, recipe in recipes.items():
            check_label("recipes", task)
            named[task] = texts(f"recipes.{task}", recipe)
            if not named[task]:
                raise FinepruneError(f"recipes.{task}: give a recipe, then overrides if it needs any")
            check_overrides(f"recipes.{task}", named[task][1:])
        check_keys(axes, AXES[1:], "axes")
        teacher, start = values.get("teacher", DENSE), values.get("start", _RECIPE)
        for key, chosen in (("teacher", teacher), ("start", start)):
            choose(chosen, (DENSE, _RECIPE), key)
        claims = values.get("claims", False)
        if not isinstance(claims, bool):
            raise FinepruneError(f"claims={claims!r}: must be true or false")
        for override in (*overrides, *(text for given in named.values() for text in given[1:])):
            if teacher == DENSE and override.startswith("distillation.teacher="):
                raise FinepruneError(f"{override!r}: the dense runs teach; for another say teacher: recipe")
        by_name = variants(axes.get("variant"))
        if axes.get("structure") is not None:
            given = (text for texts in (overrides, *named.values(), *by_name.values()) for text in texts)
            for override in given:
                if override.startswith("pruning.structure="):
                    raise FinepruneError(f"{override!r}: axes.structure says what is pruned; leave one out")
        return cls(
            name=name,
            recipes=named,
            methods=axis("method", axes, ()),
            densities=axis("density", axes, ()),
            scopes=axis("scope", axes, ()),
            distillation=axis("distillation", axes, (False,)),
            variants=by_name,
            structures=structures(axes.get("structure")),
            seeds=axis("seed", axes, (0,)),
            overrides=overrides,
            skip=rules(values.get("skip")),
            teacher=teacher,
            start=start,
            claims=claims,
        )

    def cells(self) -> list[Cell]:
        """Return the runs of the grid without their recipes: teachers first, those with a teacher last.

        Raises `FinepruneError` where two would have one folder, and for a `skip` that skips nothing.
        """
        every = list(dict.fromkeys(self._product()))
        for rule in self.skip:
            if not any(matches(cell.by_axis, rule) for cell in every):
                reason = "the axes list what there is, and a dense run has no density"
                raise FinepruneError(f"skip: no run is {rule}; {reason}")
        cells = [cell for cell in every if not any(matches(cell.by_axis, rule) for rule in self.skip)]
        teachers = [_dense(cell) for cell in cells if self._needs_dense(cell)]
        ordered = list(dict.fromkeys((*teachers, *sorted(cells, key=lambda cell: cell.distillation))))
        if not ordered:
            raise FinepruneError("skip: leaves no run; take a line out")
        seen: dict[str, Cell] = {}
        for cell in ordered:
            if (other := seen.setdefault(cell.name.casefold(), cell)) != cell:
                raise FinepruneError(f"two runs would have one folder: {_told(other)}, and {_told(cell)}")
        return ordered

    def runs(self, out: Path) -> list[Run]:
        """Return the cells with their recipes, for the folder `out`.

        This reads recipes; of the data, only what they name.
        """
        return [self._run(cell, out) for cell in self.cells()]

    def _needs_dense(self, cell: Cell) -> bool:
        """Return whether a dense run must finish before the cell's."""
        taught = cell.distillation and self.teacher == DENSE
        return taught or (cell.method != DENSE and self.start == DENSE)

    def _product(self) -> Iterator[Cell]:
        for seed in self.seeds:
            for task in self.recipes:
                for method in self.methods:
                    if method == DENSE:
                        yield Cell(task, DENSE, None, None, False, seed)
                        continue
                    densities = (None,) if METHODS[method].holds_zeros else self.densities
                    if not densities:
                        raise FinepruneError(f"axes: density is missing; {method} needs it, as [0.1, 0.03]")
                    for density in densities:
                        for scope in _scopes(method, self.scopes):
                            PruningConfig(**Cell(task, method, density, scope, False, seed).pruning)
                            for distilled, *more in product(
                                self.distillation, self.variants, self._structures(method)
                            ):
                                yield Cell(task, method, density, scope, distilled, seed, *more)

    def _structures(self, method: str) -> list[str | None]:
        """Return the names of the structures that a method can prune."""
        traits = METHODS[method]
        if not traits.holds_zeros and not traits.elements_only:
            return list(self.structures)
        if None not in self.structures:
            raise FinepruneError(
                f"axes.structure: {method} prunes single weights alone; add element: element, or take "
                f"{method} out of axes.method"
            )
        return [None]

    def _run(self, cell: Cell, out: Path) -> Run:
        source, *task_overrides = self.recipes[cell.task]
        overrides = [*self.overrides, *task_overrides, f"training.seed={cell.seed}"]
        if cell.method == DENSE:
            overrides += ["pruning=null", "refine=null", "earlier_densities=null"]
        else:
            overrides += self.variants[cell.variant]
            structure = self.structures[cell.structure]
            if structure is not None:
                overrides.append(f"pruning.structure={json.dumps(structure)}")
            overrides += [f"pruning.{name}={value}" for name, value in cell.pruning.items()]
        dense = _dense(cell).name if self._needs_dense(cell) else None
        if not cell.distillation:
            overrides.append("distillation=null")
        elif self.teacher == DENSE:
            overrides.append(f"distillation.teacher={json.dumps(from_here(out / _dense(cell).name))}")
        try:
            recipe = self._begun(Recipe.load(source, overrides), source, dense and from_here(out / dense))
        except FinepruneError as error:
            raise FinepruneError(f"{cell.name}: {error}") from error
        if cell_of(cell.name, recipe.to_dict()) != cell:
            raise FinepruneError(
                f"{cell.name}: the recipe {source} is not of that scope or teacher; write its scope as an "
                "axis (scope: [global]), and with teacher: recipe give the recipe one"
            )
        return Run(cell, recipe, dense)

    def _begun(self, recipe: Recipe, source: str, dense: str | None) -> Recipe:
        """Return the stage of a recipe that is the cell's: from the run `dense` on, or its own beginning."""
        if self.start == DENSE:
            first = recipe if recipe.dense is None else recipe.dense_stage
            return first if dense is None else recipe.after_dense(dense)
        if recipe.dense is not None:
            raise FinepruneError(
                f"{source} has two stages; say start: dense, so that its runs share the first"
            )
        return recipe


def cell_of(name: str, recipe: Mapping[str, Any]) -> Cell | None:
    """Return the cell of a run by its folder's name and resolved recipe; None if these disagree."""
    cell = cell_of_recipe(recipe)
    structure = ELEMENT if cell.method == DENSE else recipe["pruning"].get("structure", ELEMENT)
    label = "" if structure == ELEMENT else r"(?:\.(\w+))?"
    found = re.fullmatch(rf"(.+?)-{cell.method}{label or '()'}-{re.escape(cell.ending)}(?:-(.+))?", name)
    return found and replace(cell, task=found[1], structure=found[2] or None, variant=found[3])


def cell_of_recipe(recipe: Mapping[str, Any]) -> Cell:
    """Return the cell of a resolved recipe, without a task. Raises `KeyError` or `TypeError` for others."""
    pruning, seed = recipe["pruning"], recipe["training"]["seed"]
    if type(seed) is not int:
        raise TypeError(f"seed {seed!r}")
    distilled = recipe.get("distillation") is not None
    if pruning is None:
        return Cell("", DENSE, None, None, distilled, seed)
    method = method_name(pruning["method"])
    scope = None if pruning["scope"] == METHODS[method].scopes[0] else pruning["scope"]
    density = None if METHODS[method].holds_zeros else pruning["density"]
    if not (density is None or is_number(density)) or scope not in (None, *METHODS[method].scopes):
        raise TypeError(f"density {density!r}, scope {scope!r}")
    return Cell("", method, density, scope, distilled, seed)


def from_here(path: Path) -> str:
    """Return the path relative to the working directory, however it was given."""
    whole = os.path.abspath(path)
    seen = os.path.relpath(whole)
    return whole if seen.startswith(os.pardir) else seen


def _dense(cell: Cell) -> Cell:
    return Cell(cell.task, DENSE, None, None, False, cell.seed)


def _scopes(method: str, scopes: tuple[Scope, ...]) -> list[Scope | None]:
    """Return the scopes of the axis that the method has; its default is None."""
    own, *_ = allowed = METHODS[method].scopes
    chosen: list[Scope | None] = [None if scope == own else scope for scope in scopes if scope in allowed]
    return chosen or [None]


def _told(cell: Cell) -> str:
    """Return a cell with its values in full."""
    values = ", ".join(f"{axis} {value}" for axis, value in asdict(cell).items() if value is not None)
    return f"{cell.name} ({values})"
