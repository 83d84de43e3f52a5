"""The tensors that folded weights do not show: with both a run goes on bit for bit."""

import copy

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.config import METHODS
from fineprune.pruning.targets import find_targets

SETTINGS = {"platon": {"warmup": 10}, "pins": {"warmup": 10}}


def prepared(method, **settings):
    model = blocks()
    if METHODS[method].holds_zeros:
        with torch.no_grad():
            for module in find_targets(model).values():
                module.weight[:, ::2] = 0
    config = PruningConfig(method, density=0.25, **SETTINGS.get(method, {}), **settings)
    return prepare(model, config, TOTAL)


def go_on_from_folded(method, saved, folded):
    """A new pruner with the weights of a finalized copy, and the rest on top."""
    resumed = prepared(method)
    state = resumed.model.state_dict(keep_vars=True)
    with torch.no_grad():
        for key, tensor in folded.items():
            held = key if key in state else key.replace(".weight", ".parametrizations.weight.original")
            state[held].copy_(tensor)
    resumed.load_tensors(saved)
    return resumed


@pytest.mark.parametrize("method", METHODS)
def test_folded_weights_and_tensors_are_the_whole_state(method):
    whole = prepared(method)
    train(whole, 14, optimizer=whole.optimizer(torch.optim.AdamW, 1e-2))
    folded = finalize(copy.deepcopy(whole.model)).state_dict()
    resumed = go_on_from_folded(method, whole.tensors(), folded)
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def test_only_weights_under_the_mask_are_kept_twice():
    pruner = prepared("movement")
    train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    saved = pruner.tensors()
    hidden = sum(tensor.numel() for name, tensor in saved.items() if name.endswith(".hidden"))
    cut = sum(int((~target.masked.mask).sum()) for target in pruner.targets)
    assert hidden == cut > 0
    assert {name.rpartition(".")[2] for name in saved} == {"hidden", "mask", "scores"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("blocks.0.0.scores"), "the saved pruning has no blocks.0.0.scores"),
        (
            lambda saved: saved.update(more=torch.zeros(1)),
            "the saved pruning has more, which this run does not",
        ),
        (
            lambda saved: saved.update({"blocks.0.0.mask": torch.ones(1, 1)}),
            r"blocks.0.0.mask: saved as \(1, 1\)",
        ),
        (
            lambda saved: saved.update({"blocks.0.0.hidden": torch.zeros(3)}),
            r"blocks.0.0.hidden: saved as \(3,\)",
        ),
    ],
)
def test_tensors_of_another_run(change, message):
    pruner = prepared("movement")
    saved = pruner.tensors()
    change(saved)
    with pytest.raises(FinepruneError, match=message):
        pruner.load_tensors(saved)
