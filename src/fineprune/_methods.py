"""The one table of methods: what each allows and needs, and where its class is."""

import importlib
from typing import Any, Literal, NamedTuple

Scope = Literal["local", "global", "type"]


class Traits(NamedTuple):
    """What a method allows and needs, and where its class is. Torch is not needed to read it."""

    where: str
    """"module:class" of the method, imported when it is used."""

    scopes: tuple[Scope, ...]
    """Rankings it allows; the first is the default."""

    order: int | None
    """Order of the pruning decision: 0 reads weights, 1 gradients, 2 curvature; None: nothing is decided."""

    learns_scores: bool = False
    """Whether the optimizer moves scores."""

    takes_penalty: bool = False
    penalty_decides: bool = False
    """Whether a fixed penalty makes the density an outcome; else the masks keep the scheduled density."""

    score_lr: float | None = None
    mask_interval: int = 1
    holds_zeros: bool = False
    """The zeros that are there stay; density and schedule are not used."""

    trains_weights: bool = True
    """Whether weights train; else `prepare` freezes all but the scores and the head."""

    can_fix_masks: bool = True
    """Whether masks that are no longer ranked stay; the gates of l0 go on closing with their scores."""

    elements_only: bool = False
    """Whether it can prune nothing but elements."""

    starts_by_size: bool = False
    """Whether a method that reads gradients ranks by the size of the weights before it has read any."""

    in_paper: bool = True
    """Whether it is a column of the tables of Sanh, Wolf and Rush (2020)."""


_METHODS = "fineprune.pruning.methods"

METHODS: dict[str, Traits] = {
    "magnitude": Traits(f"{_METHODS}.magnitude:Magnitude", ("local", "global"), order=0),
    "l0": Traits(
        f"{_METHODS}.l0:L0",
        ("global",),
        order=1,
        learns_scores=True,
        takes_penalty=True,
        penalty_decides=True,
        can_fix_masks=False,
        score_lr=1e-1,
    ),
    "movement": Traits(
        f"{_METHODS}.movement:Movement",
        ("local", "global", "type"),
        order=1,
        learns_scores=True,
        takes_penalty=True,
        score_lr=3e-2,
    ),
    "soft_movement": Traits(
        f"{_METHODS}.soft_movement:SoftMovement",
        ("global", "type"),
        order=1,
        learns_scores=True,
        takes_penalty=True,
        penalty_decides=True,
        score_lr=3e-2,
    ),
    "platon": Traits(
        f"{_METHODS}.platon:Platon",
        ("global",),
        order=1,
        mask_interval=10,
        starts_by_size=True,
        in_paper=False,
    ),
    "pins": Traits(
        f"{_METHODS}.platon:Pins", ("global",), order=1, mask_interval=10, starts_by_size=True, in_paper=False
    ),
    "fisher": Traits(
        f"{_METHODS}.fisher:Fisher", ("global", "local"), order=1, starts_by_size=True, in_paper=False
    ),
    "admm": Traits(f"{_METHODS}.admm:Admm", ("global",), order=1, elements_only=True, in_paper=False),
    "st3": Traits(f"{_METHODS}.st3:St3", ("global",), order=0, elements_only=True, in_paper=False),
    "pdp": Traits(f"{_METHODS}.pdp:Pdp", ("local",), order=0, elements_only=True, in_paper=False),
    "powerprop": Traits(
        f"{_METHODS}.powerprop:Powerprop", ("local", "global"), order=0, elements_only=True, in_paper=False
    ),
    "proximal": Traits(
        f"{_METHODS}.proximal:Proximal", ("global",), order=0, elements_only=True, in_paper=False
    ),
    "obert": Traits(
        f"{_METHODS}.obert:Obert", ("global",), order=2, mask_interval=50, elements_only=True, in_paper=False
    ),
    "flow": Traits(f"{_METHODS}.flow:Flow", ("global", "local"), order=1, mask_interval=50, in_paper=False),
    "smp": Traits(
        f"{_METHODS}.smp:Smp",
        ("type", "local", "global"),
        order=1,
        learns_scores=True,
        takes_penalty=True,
        score_lr=2e-2,
        elements_only=True,
        trains_weights=False,
        in_paper=False,
    ),
    "grain": Traits(f"{_METHODS}.grain:Grain", ("global", "local"), order=1, in_paper=False),
    "keep_zeros": Traits(
        f"{_METHODS}.keep_zeros:KeepZeros", ("local",), order=None, holds_zeros=True, in_paper=False
    ),
}
"""The one table of methods, in the order in which tables and figures show them. A new method is a line here
and a file in `pruning/methods`."""

RENAMED = {"frozen": "keep_zeros"}
"""Older names of methods, which are still taken."""


def method_name(name: Any) -> Any:
    """Return the name that a method has now; what is no older name is returned as it is."""
    return RENAMED.get(name, name) if isinstance(name, str) else name


def method_class(name: str) -> Any:
    """Return the class of a method of `METHODS`; imports torch."""
    module, _, attribute = METHODS[name].where.partition(":")
    return getattr(importlib.import_module(module), attribute)
