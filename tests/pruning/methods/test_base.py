"""The parts that no packaged method has: modules that train beside the model, and extra state."""

import copy

import torch
from pruning.blocks import TOTAL, blocks, train
from torch import nn

from fineprune import PruningConfig
from fineprune.pruning.finalizing import fold
from fineprune.pruning.methods.base import Method, Parts
from fineprune.pruning.score_rules import WeightSize


class Counter:
    """Extra state: how often masks were refreshed."""

    def __init__(self):
        self.count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class WithModules(Method):
    """Magnitude, with a linear layer that trains beside the model and a counter of refreshes."""

    def parts(self):
        self.counter = Counter()

        def count(_targets):
            self.counter.count += 1

        return Parts(
            rule=WeightSize(),
            modules=lambda model: {"probe": nn.Linear(2, 1)},
            state=self.counter,
            after_cut=count,
        )


def prepared(prepare_with):
    torch.manual_seed(0)
    return prepare_with(WithModules, blocks(), PruningConfig("magnitude", density=0.5), TOTAL)


def test_modules_train_with_the_weights_and_go_at_finalize(prepare_with):
    pruner = prepared(prepare_with)
    keys = set(blocks().state_dict())
    probe = pruner.model.get_submodule("_fineprune_modules.probe")
    groups = pruner.parameter_groups(1e-2)
    assert id(probe.weight) in {id(entry) for entry in groups[0]["params"]}
    assert {"modules.probe.weight", "modules.probe.bias"} <= set(pruner.tensors())
    fold(pruner.model)
    assert set(pruner.model.state_dict()) == keys


def test_modules_are_loaded_with_the_tensors(prepare_with):
    pruner, other = prepared(prepare_with), prepared(prepare_with)
    with torch.no_grad():
        pruner.model.get_submodule("_fineprune_modules.probe").weight.fill_(3.0)
    other.load_tensors(pruner.tensors())
    assert other.model.get_submodule("_fineprune_modules.probe").weight.tolist() == [[3.0, 3.0]]


def test_extra_state_is_saved_as_plain_values(prepare_with):
    pruner = prepared(prepare_with)
    train(pruner, 5)
    saved = copy.deepcopy(pruner.state_dict())
    assert saved["method"] == {"count": 6}  # one before the first step
    other = prepared(prepare_with)
    other.load_state_dict(saved)
    assert other.state_dict()["method"] == {"count": 6}
