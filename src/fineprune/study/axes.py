"""Read the axes of a study, and check what stands in its file."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from fineprune._messages import suggestion
from fineprune._validation import check_keys, shown
from fineprune.config import METHODS, Scope
from fineprune.errors import FinepruneError
from fineprune.structure import parts_of

DENSE = "dense"
AXES = ("task", "method", "density", "scope", "structure", "distillation", "variant", "seed")
ELEMENT = "element"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_WORD = re.compile(r"[A-Za-z0-9_]{1,40}")
_OF_PRUNED = (  # sections that a variant may change
    "training",
    "pruning",
    "distillation",
    "refine",
    "earlier_densities",
)
_SET_BY_AXES = {
    "pruning": "method",
    "pruning.method": "method",
    "pruning.density": "density",
    "pruning.scope": "scope",
    "training.seed": "seed",
    "distillation": "distillation",
}


def check_label(where: str, label: Any) -> None:
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise FinepruneError(
            f"{where}: {shown(label)} becomes the name of a folder; use up to 100 letters, digits, and . _ -"
        )


def texts(where: str, value: Any) -> tuple[str, ...]:
    """Return a text, or a list of texts, as a tuple."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise FinepruneError(f"{where}={shown(value)}: expected texts such as training.steps=600")
    return tuple(texts)


def check_overrides(where: str, overrides: Iterable[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if key in _SET_BY_AXES:
            raise FinepruneError(
                f"{where}: {override!r} sets what the runs differ by; list it in axes.{_SET_BY_AXES[key]}"
            )


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def axis(name: str, axes: Mapping[str, Any], default: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values of an axis, each of its type, none of them twice."""
    if name not in axes:
        if name == "method":
            raise FinepruneError(f"axes: method is missing; known: {DENSE}, {', '.join(METHODS)}")
        return default
    values = listed(axes[name])
    if not values:
        raise FinepruneError(f"axes.{name}: is empty; list values, or leave it out")
    for value in values:
        check_value(f"axes.{name}", name, value)
    if name == "density":
        values = [float(value) for value in values]
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise FinepruneError(
            f"axes.{name}: {twice[0]!r} is there twice, which would be one run; take one out"
        )
    return tuple(values)


def check_value(where: str, axis: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    known = {
        "task": (isinstance(value, str), "a label of recipes"),
        "method": (value in (DENSE, *METHODS), ", ".join((DENSE, *METHODS))),
        "density": (number and 0 < value <= 1, "numbers in (0, 1]; for 10 % write 0.1"),
        "scope": (value in get_args(Scope), ", ".join(get_args(Scope))),
        "distillation": (isinstance(value, bool), "false, true"),
        "structure": (isinstance(value, str), "a name of axes.structure"),
        "variant": (isinstance(value, str), "a name of axes.variant"),
        "seed": (isinstance(value, int) and number and value >= 0, "whole numbers from 0"),
    }
    right, allowed = known[axis]
    if not right:
        hint = suggestion(value, (DENSE, *METHODS)) if axis == "method" else ""
        raise FinepruneError(f"{where}={shown(value)}: {hint}allowed are {allowed}")


def variants(value: Any) -> dict[str | None, tuple[str, ...]]:
    """Return the overrides of each variant by its name; without any, one without a name."""
    if value is None:
        return {None: ()}
    if not isinstance(value, Mapping) or not value:
        raise FinepruneError(
            f"axes.variant={shown(value)}: give overrides by name, as {{slow: [training.learning_rate=2e-4]}}"
        )
    found: dict[str | None, tuple[str, ...]] = {}
    for name, overrides in value.items():
        check_label("axes.variant", name)
        found[name] = texts(f"axes.variant.{name}", overrides)
        check_overrides(f"axes.variant.{name}", found[name])
        for override in found[name]:
            if override.partition("=")[0].partition(".")[0] not in _OF_PRUNED:
                raise FinepruneError(
                    f"axes.variant.{name}: {override!r} changes the dense runs too, which variants share; "
                    f"set one of {', '.join(_OF_PRUNED)}, or make it a recipe of its own"
                )
    return found


def structures(value: Any) -> dict[str | None, Any]:
    """Return the value of `pruning.structure` by its name, None for elements; None: the recipe's."""
    if value is None:
        return {None: None}
    if not isinstance(value, Mapping) or not value:
        raise FinepruneError(
            f"axes.structure={shown(value)}: give structures by name, as {{element: element, blocks: [4, 1]}}"
        )
    found: dict[str | None, Any] = {}
    for name, structure in value.items():
        if not isinstance(name, str) or not _WORD.fullmatch(name):
            raise FinepruneError(
                f"axes.structure: {shown(name)} becomes part of the name of a folder; use up to 40 letters, "
                "digits and _"
            )
        if (name == ELEMENT) != (structure == ELEMENT):
            raise FinepruneError(
                f"axes.structure.{name}={shown(structure)}: single weights, and they alone, are named "
                f"{ELEMENT}"
            )
        try:
            parts_of(structure)
        except FinepruneError as error:
            raise FinepruneError(f"axes.structure.{name}: {error}") from error
        found[None if name == ELEMENT else name] = structure
    return found


def rules(skip: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(skip, (list, type(None))):
        raise FinepruneError(f"skip={shown(skip)}: expected a list such as [{{method: l0, density: 0.03}}]")
    for rule in skip or []:
        check_keys(rule, AXES, "skip")
        if not rule:
            raise FinepruneError("skip: {} would leave out every run; name what to leave out")
        for axis, value in rule.items():
            for one in listed(value):
                check_value(f"skip.{axis}", axis, one)
    return tuple(skip or ())


def matches(values: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Return whether the values of a cell, by axis, match a rule of `skip`."""
    return all(values[axis] in listed(wanted) for axis, wanted in rule.items())
