"""How much a student learns from its teacher."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from fineprune._messages import choose
from fineprune._validation import check_keys, check_number, shown
from fineprune.errors import FinepruneError

LAYERS = ("same", "even", "nearest")


@dataclass(frozen=True)
class Distillation:
    """How much a student learns from its teacher (Hinton, Vinyals and Dean, 2015, arXiv:1503.02531).

    The loss is task · task loss + alpha · T² · KL(teacher ‖ student) + hidden · distance of hidden states,
    both sides of the KL softened by the temperature T. The defaults are those of the paper's runs with
    distillation (its Table 3).
    """

    alpha: float = 0.9
    """Weight of the teacher's answers in the loss."""

    temperature: float = 2.0
    """What the logits are divided by. Higher: more of what the teacher thinks of the wrong answers."""

    task: float | None = None
    """Weight of the labels' loss. None: 1 − alpha, and alpha must then lie in [0, 1]."""

    hidden: float = 0.0
    """Weight of the distance of the hidden states, layer by layer (SquareHead, Kurtic et al. 2023,
    arXiv:2310.06927). It needs a teacher of the same width, which runs beside the student."""

    similarity: float = 0.0
    """Weight of the distance of the similarities of all pairs of texts in a batch; of sentence embeddings."""

    graft: float | None = None
    """Share of the student's own blocks in the first training pass, in [0, 1); the teacher's frozen blocks
    compute in the place of the others (sparse progressive distillation, Huang et al. 2022). None: all are the
    student's. It needs a teacher with the same blocks."""

    graft_until: float = 0.5
    """Share of the steps, in (0, 1], over which `graft` rises to 1."""

    layers: str | tuple[tuple[int, int], ...] = "same"
    """Which hidden states are compared. "same": after each layer; a teacher of more layers is read at equal
    distances. "even": the embeddings' output and every second layer (GRAIN). "nearest": four layers of the
    teacher, each with the nearest of the student's (CoFi). Or pairs [student, teacher], 0 being the output of
    the embeddings."""

    separate: bool = False
    """Keep the hidden states out of the gradients of importance scores, which then see the task and the
    teacher's answers alone (GRAIN). It costs about one more backward pass; without scores it does nothing."""

    def __post_init__(self) -> None:
        for name in ("alpha", "temperature", "task", "hidden", "similarity", "graft", "graft_until"):
            if getattr(self, name) is not None or name not in ("task", "graft"):
                check_number(name, getattr(self, name))
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.task is None and not 0 <= self.alpha <= 1:
            raise FinepruneError(
                f"alpha={self.alpha!r}: the teacher's share of the loss must lie in [0, 1], for example 0.9; "
                "weights that do not add up to 1 need task=, the weight of the labels' loss"
            )
        for name in ("alpha", "task", "hidden", "similarity"):
            if (getattr(self, name) or 0.0) < 0:
                raise FinepruneError(
                    f"{name}={getattr(self, name)!r}: a weight of the loss must be at least 0"
                )
        if self.graft is not None and not 0 <= self.graft < 1:
            raise FinepruneError(
                f"graft={self.graft!r}: the first share of the student's own blocks must lie in [0, 1), for "
                "example 0.8; leave it out to train them all"
            )
        if not 0 < self.graft_until <= 1:
            raise FinepruneError(f"graft_until={self.graft_until!r}: must be a share of the steps, in (0, 1]")
        if self.graft is None and self.graft_until != type(self).graft_until:
            raise FinepruneError(
                f"graft_until={self.graft_until!r}: is about graft, which is not given; leave it out"
            )
        object.__setattr__(self, "layers", _layers(self.layers))
        if not isinstance(self.separate, bool):
            raise FinepruneError(f"separate={self.separate!r}: must be true or false")
        for name, default in (("layers", "same"), ("separate", False)):
            if getattr(self, name) != default and not self.hidden:
                raise FinepruneError(
                    f"{name}={getattr(self, name)!r}: is about hidden states, and hidden is 0; leave {name} "
                    "out, or give hidden, such as 1.0"
                )
        if self.temperature <= 0:
            raise FinepruneError(
                f"temperature={self.temperature!r}: must be greater than 0; 2 is usual, 1 softens nothing"
            )

    @property
    def task_weight(self) -> float:
        """The weight of the labels' loss."""
        return 1 - self.alpha if self.task is None else self.task

    @property
    def teaches(self) -> bool:
        """Whether the teacher has a share in the training."""
        return any((self.alpha, self.hidden, self.similarity, self.graft is not None))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold."""
        layers = self.layers if isinstance(self.layers, str) else [list(pair) for pair in self.layers]
        return asdict(self) | {"layers": layers}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings of a mapping; an unknown key is an error that names the nearest one."""
        check_keys(values, (entry.name for entry in fields(cls)), "distillation")
        return cls(**values)


def _layers(value: Any) -> str | tuple[tuple[int, int], ...]:
    """Return which states are compared: a name, or pairs as tuples."""
    if isinstance(value, str):
        return choose(value, LAYERS, "layers")
    if isinstance(value, (list, tuple)) and value:
        pairs = [tuple(pair) for pair in value if isinstance(pair, (list, tuple)) and len(pair) == 2]
        if len(pairs) == len(value) and all(type(one) is int and one >= 0 for pair in pairs for one in pair):
            return tuple((own, other) for own, other in pairs)
    raise FinepruneError(
        f"layers={shown(value)}: must be {', '.join(LAYERS)}, or pairs such as [[1, 2], [2, 4]], layers of "
        "the student and of the teacher from 1, and 0 for the embeddings"
    )
