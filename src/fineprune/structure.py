"""What stays or goes together: the setting `structure` of a pruning, read and checked."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fineprune._messages import choose, suggestion
from fineprune._validation import check_keys, is_number, shown
from fineprune.errors import FinepruneError

Unit = str | tuple[int, int]
"""A name, or the rows and columns of a block."""

ALL = "all"
"""The part of a structure that says the same of every target matrix."""

EVERYWHERE = ("element", "row", "column")
"""Units of every matrix, beside blocks."""

UNITS = {"attention": ("head", "attention"), "feed_forward": ("neuron", "feed_forward")}
"""Units that one part of a layer has besides."""

TIED = tuple(unit for units in UNITS.values() for unit in units)
"""Units that span several matrices, and which `shrink` removes."""


class Part(NamedTuple):
    """What one part of each block is cut into."""

    unit: Unit
    density: float | None = None
    """The share of this part that stays; None: the density of the whole pruning."""


def parts_of(structure: Any) -> dict[str, Part]:
    """Return what each part of a model is cut into: "all" of it, or "attention" and "feed_forward".

    A part that is not named stays whole.

    Raises:
        FinepruneError: An unknown unit or part, a unit of another part, or densities of some parts alone.
    """
    if not isinstance(structure, Mapping):
        return {ALL: Part(_unit(structure, ALL, "structure"))}
    check_keys(structure, UNITS, "structure")
    if not structure:
        raise FinepruneError("structure={}: name attention, feed_forward or both, or leave structure out")
    parts = {name: _part(structure[name], name) for name in UNITS if name in structure}
    if len({part.density is None for part in parts.values()}) > 1:
        raise FinepruneError(
            "structure: give both parts a density, or neither: without one they are ranked together"
        )
    return parts


def plain(parts: Mapping[str, Part]) -> Any:
    """Return the structure as values that JSON and YAML can hold; `parts_of` reads them."""

    def unit_of(part: Part) -> Any:
        return list(part.unit) if isinstance(part.unit, tuple) else part.unit

    if ALL in parts:
        return unit_of(parts[ALL])
    return {
        name: unit_of(part) if part.density is None else {"unit": unit_of(part), "density": part.density}
        for name, part in parts.items()
    }


def canonical(parts: Mapping[str, Part]) -> Any:
    """Return a structure as it is given in Python, so that equal ones compare equal."""
    value = plain(parts)
    return tuple(value) if ALL in parts and isinstance(value, list) else value


def shrinks(structure: Any) -> bool:
    """Return whether a structure leaves a smaller model: of units that `shrink` removes."""
    return any(part.unit in TIED for part in parts_of(structure).values())


def check_structure(config: Any) -> None:
    """Raise `FinepruneError` where the structure or its budget does not fit the rest of a `PruningConfig`."""
    if config.traits.holds_zeros and config.structure != "element":
        raise FinepruneError(
            f"structure={config.structure!r}: method={config.method!r} holds the zeros that are there; leave "
            "structure out"
        )
    choose(config.budget, ("parameters", "flops", "latency"), "budget")
    for name in ("budget_length", "round_to"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise FinepruneError(f"{name}={shown(value)}: must be a whole number, at least 1")
    units = {part.unit for part in parts_of(config.structure).values()}
    if config.round_to > 1 and "neuron" not in units:
        raise FinepruneError(
            f"round_to={config.round_to}: rounds neurons, and the structure has none; leave it out, or give "
            "structure={'feed_forward': 'neuron'}"
        )
    local = (config.scope or config.traits.scopes[0]) == "local"
    _check_latency(config, units)
    if config.budget == "flops" and (local or not units & {"head", "attention"}):
        raise FinepruneError(
            f"budget={config.budget!r}: counts as the weights do where matrices are ranked one by one, or no "
            "heads are; leave it out, or give scope='global' and structure={'attention': 'head', …}"
        )
    if config.penalty is None or not config.traits.penalty_decides:
        return
    if any(part.density is not None for part in parts_of(config.structure).values()):
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
    if not units <= set(TIED):
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
    if density is not None and not (is_number(density) and 0 < density <= 1):
        raise FinepruneError(
            f"structure.{name}.density={shown(density)}: the share of the {name} that stays must lie in "
            "(0, 1]"
        )
    unit = _unit(value.get("unit"), name, f"structure.{name}.unit")
    return Part(unit, None if density is None else float(density))


def _unit(value: Any, part: str, where: str) -> Unit:
    """Return a unit of a part ("all": of every matrix)."""
    allowed = (*EVERYWHERE, *UNITS.get(part, ()))
    if isinstance(value, str) and value in allowed:
        return value
    if isinstance(value, (list, tuple)):
        sizes = [
            entry for entry in value if isinstance(entry, int) and not isinstance(entry, bool) and entry > 0
        ]
        if len(value) == 2 == len(sizes):
            return sizes[0], sizes[1]
        raise FinepruneError(
            f"{where}={shown(value)}: a block has two sizes, rows and columns, such as [4, 1]; structures in "
            "several levels are two runs: heads and neurons, then elements of the smaller model"
        )
    if isinstance(value, str) and part == ALL and value in TIED:
        of = next(name for name, units in UNITS.items() if value in units)
        raise FinepruneError(f"{where}={value!r}: is a unit of one part; write {{{of}: {value}}}")
    hint = suggestion(value, allowed) if isinstance(value, str) else ""
    choices = [*allowed, *(() if part != ALL else ("{attention: head, feed_forward: neuron}",))]
    raise FinepruneError(
        f"{where}={shown(value)}: {hint}allowed are {', '.join(choices)}, and blocks [rows, columns]"
    )
