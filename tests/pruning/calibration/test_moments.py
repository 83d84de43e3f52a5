"""Second moments of inputs, over tokens alone."""

import pytest
import torch
from torch import nn

from fineprune.pruning.calibration.moments import Moments

VALUES = torch.tensor([[[1.0, 2.0], [9.0, 9.0]], [[3.0, 0.0], [0.0, 1.0]]])
MASK = torch.tensor([[1, 0], [1, 1]])


def moments(value, module=None, mask=MASK):
    found = Moments(nn.Module(), {"layer": module or nn.Linear(2, 2)})
    found.take("layer", value, {"attention_mask": mask})
    return found


@pytest.mark.parametrize("value", [VALUES, VALUES.flatten(0, 1), VALUES[MASK.bool()]])
def test_what_is_no_padding_counts(value):
    """(1, 2), (3, 0) and (0, 1): the sums of squares are 10 and 5, of products 2."""
    found = moments(value)
    assert found.tokens == 3
    torch.testing.assert_close(found.gram, 2 / 3 * torch.tensor([[10.0, 2.0], [2.0, 5.0]]).double())
    torch.testing.assert_close(found.mean, torch.tensor([4 / 3, 1.0]).double())
    torch.testing.assert_close(found.centered[1, 1], torch.tensor(2 / 3 * 5 - 2.0).double())
    assert not found.padded


def test_channels_of_a_convolution_are_the_inputs():
    found = moments(VALUES.mT, nn.Conv1d(2, 2, 1))
    assert found.tokens == 3


@pytest.mark.parametrize(
    ("value", "padded"),
    [
        (torch.ones(5, 2), True),  # some of the tokens, as an expert gets them
        (torch.ones(2, 3, 2), True),  # shorter or longer than the texts
        (torch.ones(1, 7, 2), False),  # of no text
    ],
)
def test_padding_that_cannot_be_told(value, padded):
    assert moments(value).padded == padded
    assert not moments(value, mask=torch.ones(2, 2)).padded
