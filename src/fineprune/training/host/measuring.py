"""The batches on which a method measures before a cut, from the training data."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fineprune.errors import FinepruneError

ROWS = 8
"""Rows of a batch: many small gradients say more of the curvature than few large ones."""


def check_rows(host: Any) -> None:
    """Raise `FinepruneError` where the training data are a stream, whose rows cannot be chosen."""
    if not hasattr(host.train_dataset, "__len__"):
        raise FinepruneError(
            "the training data have no length, and this method measures on rows of them: give a dataset that "
            "is no stream, or choose another method"
        )


def task_losses(host: Any, step: int) -> Iterator[Tensor]:
    """Yield the host's own loss of batches of training rows, in an order of the seed and the step.

    A teacher and a penalty have no share in it. With several processes each gets its own batches.
    """
    rows, collate = host.train_dataset, host.data_collator
    if hasattr(rows, "column_names"):
        rows = host._remove_unused_columns(rows)
    else:
        collate = host._get_collator_with_removed_columns(collate)
    args = host.args
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed + step))
    for places in order.split(ROWS)[args.process_index :: args.world_size]:
        batch = host._prepare_inputs(collate([rows[int(place)] for place in places]))
        yield host.compute_loss(host.model, batch)
