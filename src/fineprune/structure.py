"""What stays or goes together: the setting `structure` of a pruning, read and checked."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from fineprune._messages import choose, suggestion
from fineprune._validation import check_keys, is_number, shown
from fineprune.errors import FinepruneError

Unit = str | tuple[int, int]
"""A name, or the rows and columns of a block."""

ALL = "all"
"""The part of a structure that says the same of every target matrix."""

EVERYWHERE = ("element", "row", "column")
"""Units of every matrix, beside blocks."""

DIMS = ("query_dim", "value_dim")
"""Units inside of heads (GRAIN). `shrink` removes a head that has no value dim left, but no single dims."""

UNITS = {"attention": ("head", "attention", *DIMS), "feed_forward": ("neuron", "feed_forward")}
"""Units that one part of a layer has besides."""

TIED = tuple(unit for units in UNITS.values() for unit in units)
"""Units that span several matrices."""

REMOVABLE = tuple(unit for unit in TIED if unit not in DIMS)
"""Units that `shrink` removes one by one."""


class Part(NamedTuple):
    """What one part of each block is cut into."""

    unit: Unit | tuple[str, ...]
    """One kind of unit; `DIMS`: both of these."""

    density: float | None = None
    """The share of this part that stays; None: the density of the whole pruning."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """The kinds of units, which are ranked together."""
        return DIMS if self.unit == DIMS else (cast(Unit, self.unit),)


class Level(NamedTuple):
    """One choice of units over the whole model. Of two levels, the inner one chooses among what stays."""

    parts: dict[str, Part]
    density: float | None = None
    """The share that an outer level leaves of its units. None: its parts have their own, it is the innermost
    level, whose density is that of the whole pruning, or `PruningConfig.levels` gives it one."""

    derived: bool = False
    """Whether `density` is the square root of that of the whole pruning, at the start of the run, too."""

    @property
    def shares(self) -> bool:
        """Whether the level or its parts have a density."""
        return self.density is not None or any(part.density is not None for part in self.parts.values())


def levels_of(structure: Any) -> tuple[Level, ...]:
    """Return the levels of a structure, the outer one first; most structures have one.

    Raises:
        FinepruneError: As `parts_of`, or levels that do not go together.
    """
    if not _is_levels(structure):
        return (Level(_parts(structure)),)
    if len(structure) != 2 or structure[1] != "element":
        hint = _of_no_level(structure)
        raise FinepruneError(
            f"structure={shown(structure)}: {hint}levels are two, heads and neurons first, then the elements "
            'of what stays: [{attention: head, feed_forward: neuron, density: 0.5}, "element"]'
        )
    return _outer(structure[0]), Level(_parts("element"))


def parts_of(structure: Any) -> dict[str, Part]:
    """Return what each part of a model is cut into: "all" of it, or "attention" and "feed_forward".

    A part that is not named stays whole. Of two levels, this is the inner one.

    Raises:
        FinepruneError: An unknown unit or part, a unit of another part, or densities of some parts alone.
    """
    return levels_of(structure)[-1].parts


def units_of(structure: Any) -> list[Unit]:
    """Return the units of all parts and levels."""
    parts = [part for level in levels_of(structure) for part in level.parts.values()]
    return [unit for part in parts for unit in part.units]


def _is_levels(structure: Any) -> bool:
    """Return whether a structure is a list of levels; a list of numbers is a block."""
    return isinstance(structure, (list, tuple)) and any(
        isinstance(entry, (str, Mapping)) for entry in structure
    )


def _of_no_level(structure: Sequence[Any]) -> str:
    """Return what a list that is no list of levels may have meant, with "; " behind it; or nothing."""
    if all(isinstance(entry, int) or (isinstance(entry, str) and entry.isdigit()) for entry in structure):
        return "a block has two sizes, whole numbers, such as [4, 1]; "
    for name, units in UNITS.items():
        if all(isinstance(entry, str) and entry in units for entry in structure):
            unit = structure[0] if len(structure) == 1 else f"[{', '.join(structure)}]"
            return f"is of one part; write {{{name}: {unit}}}; "
    return ""


def _outer(value: Any) -> Level:
    """Return the outer level of two."""
    if not isinstance(value, Mapping):
        raise FinepruneError(
            f"structure[0]={shown(value)}: the outer level names parts and a density, as {{attention: head, "
            "feed_forward: neuron, density: 0.5}"
        )
    parts = _parts({name: part for name, part in value.items() if name != "density"})
    for name, part in parts.items():
        if part.unit not in REMOVABLE:
            raise FinepruneError(
                f"structure[0].{name}={shown(part.unit)}: the outer level is of units that can be removed: "
                f"{', '.join(unit for unit in UNITS[name] if unit in REMOVABLE)}"
            )
    density = value.get("density")
    if density is not None and any(part.density is not None for part in parts.values()):
        raise FinepruneError(
            f"structure[0]={shown(value)}: give the level a density, or each of its parts, not both"
        )
    _check_share("structure[0].density", density, "the units")
    return Level(parts, None if density is None else float(density))


def _parts(structure: Any) -> dict[str, Part]:
    if not isinstance(structure, Mapping):
        return {ALL: Part(_unit(structure, ALL, "structure"))}
    if "density" in structure:
        raise FinepruneError(
            "structure: unknown setting 'density': of one level it is the density of the whole pruning "
            "(PruningConfig.density), or each part has its own, as {attention: {unit: head, density: 0.5}, …}"
        )
    check_keys(structure, UNITS, "structure")
    if not structure:
        raise FinepruneError("structure={}: name attention, feed_forward or both, or leave structure out")
    parts = {name: _part(structure[name], name) for name in UNITS if name in structure}
    if len({part.density is None for part in parts.values()}) > 1:
        raise FinepruneError(
            "structure: give both parts a density, or neither: without one they are ranked together"
        )
    return parts


def plain(levels: Sequence[Level]) -> Any:
    """Return the structure as values that JSON and YAML can hold; `levels_of` reads them."""
    found = [
        _plain(level.parts) | {"density": level.density} if level.density is not None else _plain(level.parts)
        for level in levels
    ]
    return found[0] if len(found) == 1 else found


def _plain(parts: Mapping[str, Part]) -> Any:

    def unit_of(part: Part) -> Any:
        return list(part.unit) if isinstance(part.unit, tuple) else part.unit

    if ALL in parts:
        return unit_of(parts[ALL])
    return {
        name: unit_of(part) if part.density is None else {"unit": unit_of(part), "density": part.density}
        for name, part in parts.items()
    }


def canonical(structure: Any) -> Any:
    """Return a structure as it is given in Python, so that equal ones compare equal."""
    levels = levels_of(structure)
    value = plain(levels)
    return tuple(value) if len(levels) == 1 and isinstance(value, list) else value


def shrinks(structure: Any) -> bool:
    """Return whether a structure may leave a smaller model, by units that `shrink` removes."""
    return any(unit in (*REMOVABLE, "value_dim") for unit in units_of(structure))


def check_structure(config: Any) -> None:
    """Raise `FinepruneError` where the structure or its budget does not fit the rest of a `PruningConfig`."""
    if config.traits.holds_zeros and config.structure != "element":
        raise FinepruneError(
            f"structure={config.structure!r}: method={config.method!r} holds the zeros that are there; give "
            "structure=element"
        )
    choose(config.budget, ("parameters", "flops", "latency"), "budget")
    for name in ("budget_length", "round_to"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FinepruneError(f"{name}={shown(value)}: must be a whole number, at least 1")
    units = set(units_of(config.structure))
    levels = levels_of(config.structure)
    if len(levels) > 1 and config.budget != "parameters":
        raise FinepruneError(
            f"budget={config.budget!r}: of two levels both densities are shares of the weights; leave "
            "budget out"
        )
    if len(levels) > 1 and config.scope == "type":
        raise FinepruneError(
            "scope='type': shares of each kind of matrix are not known of two levels; leave scope out"
        )
    own = any(part.density is not None for part in levels[-1].parts.values())
    if own and config.density != type(config).density:
        raise FinepruneError(
            f"density={config.density:g}: the parts of the structure have densities of their own; leave it "
            "out, or leave theirs out"
        )
    if config.round_to > 1 and "neuron" not in units:
        raise FinepruneError(
            f"round_to={config.round_to}: rounds neurons, and the structure has none; leave it out, or give "
            "structure={'feed_forward': 'neuron'}"
        )
    alone = (config.scope or config.traits.scopes[0]) in ("local", "type")
    _check_latency(config, units)
    if config.budget == "flops" and (alone or not units & {"head", "attention"}):
        raise FinepruneError(
            f"budget={config.budget!r}: counts as the weights do where matrices are ranked one by one, or no "
            "heads are; leave it out, or give scope='global' and structure={'attention': 'head', …}"
        )
    if config.penalty is None or not config.traits.penalty_decides:
        return
    if config.scope == "type":
        raise FinepruneError("scope='type': a fixed penalty decides what remains; leave scope or penalty out")
    if len(levels) > 1 or own:
        raise FinepruneError(
            f"structure={config.structure!r}: a fixed penalty decides what remains; leave the densities or "
            "penalty out"
        )
    for name, default in (("budget", "parameters"), ("round_to", 1)):
        if getattr(config, name) != default:
            raise FinepruneError(
                f"{name}={getattr(config, name)!r}: a fixed penalty decides what remains; leave {name} or "
                "penalty out"
            )


def _check_latency(config: Any, units: set[Unit]) -> None:
    """Raise `FinepruneError` where a table of times is missing, or does not fit what is ranked."""
    table = config.latency_table
    if config.budget != "latency":
        if table is not None:
            raise FinepruneError(
                f"latency_table={shown(table)}: only budget='latency' reads it; give that budget, or leave "
                "latency_table out"
            )
        return
    if not isinstance(table, str) or not table:
        raise FinepruneError(
            f"latency_table={shown(table)}: budget='latency' needs the path of a file of times, which "
            "fineprune bench DIR --table writes"
        )
    if not units <= set(REMOVABLE):
        raise FinepruneError(
            f"budget='latency': a table has times of heads and neurons, and structure={config.structure!r} "
            "has other units; give structure={'attention': 'head', 'feed_forward': 'neuron'}"
        )
    together = (config.scope or config.traits.scopes[0]) == "global"
    if not together or any(part.density is not None for part in parts_of(config.structure).values()):
        raise FinepruneError(
            "budget='latency': weighs heads and neurons of all layers against each other; give "
            "scope='global', and no density of a part"
        )


def _part(value: Any, name: str) -> Part:
    if not isinstance(value, Mapping):
        return Part(_unit(value, name, f"structure.{name}"))
    check_keys(value, Part._fields, f"structure.{name}")
    density = value.get("density")
    _check_share(f"structure.{name}.density", density, f"the {name}")
    unit = _unit(value.get("unit"), name, f"structure.{name}.unit")
    return Part(unit, None if density is None else float(density))


def _check_share(where: str, density: Any, of: str) -> None:
    if density is not None and not (is_number(density) and 0 < density <= 1):
        raise FinepruneError(f"{where}={shown(density)}: the share of {of} that stays must lie in (0, 1]")


def _unit(value: Any, part: str, where: str) -> Unit | tuple[str, ...]:
    """Return a unit of a part ("all": of every matrix), or both units inside of heads."""
    allowed = (*EVERYWHERE, *UNITS.get(part, ()))
    if isinstance(value, str) and value in allowed:
        return value
    if isinstance(value, (list, tuple)):
        sizes = [
            entry for entry in value if isinstance(entry, int) and not isinstance(entry, bool) and entry > 0
        ]
        if len(value) == 2 == len(sizes):
            return sizes[0], sizes[1]
        if part == "attention" and any(isinstance(entry, str) for entry in value):
            if len(value) == len(DIMS) and all(unit in value for unit in DIMS):
                return DIMS
            raise FinepruneError(
                f"{where}={shown(value)}: the units that go together are [{', '.join(DIMS)}]; give one unit"
            )
        raise FinepruneError(
            f"{where}={shown(value)}: a block has two sizes, rows and columns, such as [4, 1]"
        )
    if isinstance(value, str) and part == ALL and value in TIED:
        of = next(name for name, units in UNITS.items() if value in units)
        raise FinepruneError(f"{where}={value!r}: is a unit of one part; write {{{of}: {value}}}")
    if value in ("hidden", "hidden_size"):
        raise FinepruneError(
            f"{where}={value!r}: is no unit: a norm takes mean and variance over all dimensions, so that one "
            "which is masked still changes the others; prune heads and neurons, or take a narrower model"
        )
    known = (*allowed, *(TIED if part == ALL else ()))
    hint = suggestion(value, known) if isinstance(value, str) else ""
    if other := next((name for name, units in UNITS.items() if name != part and value in units), None):
        hint = f"is a unit of {other}; "
    choices = [*allowed, *(() if part != ALL else ("{attention: head, feed_forward: neuron}",))]
    raise FinepruneError(
        f"{where}={shown(value)}: {hint}allowed are {', '.join(choices)}, and blocks [rows, columns]"
    )
