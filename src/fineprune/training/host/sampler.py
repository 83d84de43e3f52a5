"""Batches of texts of similar length, in an order that a resumed run finds again."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_BATCHES = 50  # sorted together: enough to save most padding, few enough to stay random


class GroupedByLength(Sampler[int]):
    """Draw the rows in random order such that each run of `batch` rows has texts of similar length.

    Shuffled rows are sorted by length within stretches of 50 batches; the batches of a stretch are then
    shuffled. The order is a function of `seed` and epoch alone.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of that epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        for stretch in torch.randperm(len(self), generator=generator).split(self.batch * _BATCHES):
            batches = stretch[self.lengths[stretch].argsort(stable=True)].split(self.batch)
            order = torch.randperm(len(batches), generator=generator).tolist()
            if len(batches[-1]) < self.batch:  # a short batch anywhere else would shift the others
                order = [index for index in order if index != len(batches) - 1] + [len(batches) - 1]
            for index in order:
                yield from batches[index].tolist()
