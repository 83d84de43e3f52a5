"""Check a recipe whose dense model teaches while labels are learned as well."""

from fineprune.config import Distillation
from fineprune.errors import FinepruneError


def check_labeled(loss: Distillation, cache: bool | str, batch_size: int) -> None:
    """Raise `FinepruneError` for settings with which labeled texts cannot be learned.

    Args:
        loss: the weights.
        cache: where the dense model's answers are stored.
        batch_size: rows of a batch.
    """
    if not loss.task_weight:
        raise FinepruneError(
            f"distillation.task: is {'0' if loss.task is not None else '1 - alpha, which is 0'}, so "
            "task.loss does nothing; give distillation.task=1, or distillation=null to learn from the labels "
            "alone"
        )
    if cache:
        raise FinepruneError(
            f"distillation.cache={cache!r}: the answers to rows of several texts are not stored; leave cache "
            "out, or task.loss"
        )
    if batch_size < 2:
        raise FinepruneError(
            f"training.batch_size={batch_size}: task.loss compares the rows of a batch; give at least 2"
        )
