"""A run that goes on from its state dicts, beside the one that was not stopped."""

import copy

import torch
from pruning.blocks import TOTAL, train


def assert_resumes(prepared, steps):
    """Check that a run resumed after `steps` ends with the same weights, masks and buffers, bit for bit.

    Args:
        prepared: Returns a new pruner.
        steps: When the run is stopped.
    """
    whole = prepared()
    optimizer = whole.optimizer(torch.optim.AdamW, 1e-2)
    train(whole, steps, optimizer=optimizer)
    saved = copy.deepcopy((whole.model.state_dict(), whole.state_dict(), optimizer.state_dict()))
    resumed = prepared()
    other = resumed.optimizer(torch.optim.AdamW, 1e-2)
    resumed.model.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    for pruner, moved in ((whole, optimizer), (resumed, other)):
        train(pruner, TOTAL - steps, optimizer=moved)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], tensor), key
