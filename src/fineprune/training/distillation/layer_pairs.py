"""Which hidden states of a student are compared with which of its teacher.

State 0 is the output of the embeddings, state i that of layer i.
"""

from collections.abc import Callable, Sequence
from typing import Any

from fineprune.errors import FinepruneError

Pair = tuple[int, int]
"""The state of the student, and that of the teacher."""


def check_pairs(layers: Any, student: int, teacher: int, name: str) -> None:
    """Raise `FinepruneError` unless a student and a teacher of so many layers have the pairs.

    Args:
        layers: `Distillation.layers`.
        student: The layers of the student.
        teacher: The layers of the teacher.
        name: The teacher's name in messages.
    """
    if isinstance(layers, str):
        if student > teacher:
            raise FinepruneError(
                f"{name}: has {teacher} layers, the model {student}, so their hidden states cannot be "
                "compared; leave distillation's hidden out, name a teacher of the model's size, or give "
                "distillation.layers as pairs of [student, teacher]"
            )
        return
    for own, other in layers:
        if own > student or other > teacher:
            raise FinepruneError(
                f"distillation.layers: [{own}, {other}] names a layer that is not there; the model has "
                f"{student}, its teacher {teacher}, counted from 1, and 0 is the embeddings"
            )


def fixed_pairs(layers: Any, student: int, teacher: int) -> list[Pair]:
    """Return the pairs of "same", "even" or a list, for a student and a teacher of so many layers.

    A teacher of more layers is read at equal distances: layer i of the student has its layer
    round(i · teacher / student).
    """
    if not isinstance(layers, str):
        return [(own, other) for own, other in layers]
    states = range(1, student + 1) if layers == "same" else range(0, student + 1, 2)
    return [(own, round(own * teacher / student)) for own in states]


def nearest_pairs(student: int, teacher: int, distance: Callable[[int, int], float]) -> list[Pair]:
    """Return the pairs of CoFi (Xia et al. 2022): four layers of the teacher, each with the nearest one.

    The teacher's are those at its quarters, 3, 6, 9 and 12 of 12. They are placed from the last to the first,
    each at a layer of the student before the one placed last.

    Args:
        student: The layers of the student.
        teacher: The layers of the teacher.
        distance: Returns the distance of a state of the student from one of the teacher.
    """
    count = min(4, student, teacher)
    quarters = [round((place + 1) * teacher / count) for place in range(count)]
    return placed(range(1, student + 1), quarters, distance)


def placed(
    student: Sequence[int], teacher: Sequence[int], distance: Callable[[int, int], float]
) -> list[Pair]:
    """Return a pair for each layer of the teacher: the nearest of the student's, in the same order."""
    pairs: list[Pair] = []
    end = len(student)
    for before in reversed(range(len(teacher))):
        free = range(before, end)  # each of the `before` earlier ones needs a place, too
        end = min(free, key=lambda place: distance(student[place], teacher[before]))
        pairs.append((student[end], teacher[before]))
    return pairs[::-1]
