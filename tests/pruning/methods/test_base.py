"""Frozen weights, and the parts that no packaged method has: modules beside the model, and extra state."""

import copy

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from torch import nn

from fineprune import FinepruneError, PruningConfig, prepare
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


def with_a_frozen_layer(method, **options):
    model = blocks()
    model.blocks[0][0].weight.requires_grad_(False)
    config = PruningConfig(method, density=0.25, warmup=5, options=options)
    return prepare(model, config, TOTAL)


@pytest.mark.parametrize("method", ["admm", "flow", "obert"])
def test_frozen_weights_have_no_gradient_to_rank_by(method):
    with pytest.raises(FinepruneError, match=r"blocks\.0\.0: is frozen, and it has no gradient to rank by"):
        with_a_frozen_layer(method)
    pruner = prepare(blocks(), PruningConfig(method, density=0.25), TOTAL)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    pruner.targets[1].weight.requires_grad_(False)
    with pytest.raises(FinepruneError, match=r"blocks\.0\.2: is frozen, and it has no gradient to rank by"):
        train(pruner, TOTAL, optimizer=optimizer)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("admm", {"objective_aware": False}),
        ("fisher", {}),
        ("grain", {}),
        ("pins", {"window": 5}),
        ("platon", {"window": 5}),
    ],
)
def test_other_methods_rank_a_frozen_layer_with_the_rest(method, options):
    pruner = with_a_frozen_layer(method, **options)
    train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    kept = [int(target.masked.mask.sum()) for target in pruner.targets]
    assert kept[0] >= 6
    assert sum(kept) == 48
