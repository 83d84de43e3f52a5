"""Two levels: heads and neurons, then the elements of what stays."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from architectures.models import make
from pruning.test_structures import HEADS, UNITS, bert, train
from torch import nn
from torch.nn.utils import parametrize

from fineprune import FinepruneError, PruningConfig, finalize, prepare, shrink, summary
from fineprune.pruning import units
from fineprune.pruning.finalizing import fold
from fineprune.pruning.levels import cut_inside, inside
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.probe import difference, outputs, probe_inputs
from fineprune.pruning.score_rules import Ranked

LEVELS = [HEADS | {"density": 0.5}, "element"]
SETTINGS = {"platon": {"mask_interval": 2, "options": {"window": 2}}}
SETTINGS["pins"] = SETTINGS["platon"]


def config(method="magnitude", density=0.1, structure=LEVELS, **settings):
    settings = {"scope": None if method in ("l0", "soft_movement", "platon", "pins") else "global"} | settings
    return PruningConfig(
        method, density, structure=structure, warmup=2, cooldown=2, **settings, **SETTINGS.get(method, {})
    )


# structures.md 12.5: both levels get the gradient of the product W ⊙ M_rows ⊙ M_elements.
def test_the_gradients_of_two_levels():
    module = nn.Linear(2, 2, bias=False)
    module.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    outer = MaskedWeight(module.weight, torch.zeros(2), units.rows("w", module.weight))
    inner = MaskedWeight(module.weight, torch.zeros(2, 2))
    inner.within = (outer, outer.grid.expansion)
    for masked, flags in ((inner, [[1, 0], [1, 1]]), (outer, [1, 0])):
        parametrize.register_parametrization(module, "weight", masked, unsafe=True)
        masked.units.copy_(torch.tensor(flags, dtype=torch.bool))
        masked.spread()
    module.weight.sum().backward()
    assert module.weight.tolist() == [[1, 0], [0, 0]]
    assert outer.scores.grad.tolist() == [1, 7]
    assert inner.scores.grad.tolist() == [[1, 2], [0, 0]]
    assert inner.kept().tolist() == [[True, False], [False, False]]
    assert (inner.kept_weights(), inner.total_weights) == (1, 4)


def two_rows(scores, flags, alive):
    """A target of two rows, of which an outer level keeps those in `alive`."""
    weight = nn.Parameter(torch.tensor(scores))
    outer = MaskedWeight(weight, torch.zeros(2), units.rows("w", weight))
    outer.units.copy_(torch.tensor(alive))
    inner = MaskedWeight(weight, torch.tensor(scores))
    inner.within = (outer, outer.grid.expansion)
    inner.mask.copy_(torch.tensor(flags))
    return SimpleNamespace(masked=inner, scores=inner.scores)


def test_only_what_the_outer_level_keeps_is_ranked():
    # Of 6 weights a half is 3: the three of row 0 that is alive. Row 1 keeps the flags that it had.
    target = two_rows([[0.1, 0.2, 0.3], [9.0, 9.0, 9.0]], [[False] * 3, [True, False, True]], [True, False])
    assert [value.tolist() for value, _ in inside([target.scores], [target])] == [
        [[pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.3)]]
    ]
    assert cut_inside(Ranked([target.scores.detach()]), [target], 0.5, 0.0, False) == []  # nothing is cut
    assert target.masked.mask.tolist() == [[True, True, True], [True, False, True]]
    (cut,) = cut_inside(Ranked([target.scores.detach()]), [target], 1 / 3, 0.0, False)  # 2 of 6
    assert cut.value == pytest.approx(0.2)
    assert target.masked.mask.tolist() == [[False, True, True], [True, False, True]]
    assert target.masked.kept().tolist() == [[False, True, True], [False] * 3]


@pytest.mark.parametrize("method", UNITS)
def test_a_run_of_every_method(method):
    model = bert()
    pruner = prepare(model, config(method), 8)
    train(model, pruner)
    # structures.md 12.9: round(0.1 * 16,384) weights, all inside of the units that the outer level keeps.
    assert pruner.density == 1638 / 16384
    alive = sum(target.masked.kept_weights() for target in pruner.outer)
    assert alive == pytest.approx(8192, abs=512)  # half a head
    assert pruner.left["parameters"] == pruner.density
    assert pruner.left["heads"][0] * 1024 + pruner.left["neurons"][0] * 64 == alive
    during, table = outputs(model, probe_inputs(model)), summary(model)
    assert (table.kept, table.total) == (1638, 16384)
    finalize(model)
    assert difference(during, outputs(model, probe_inputs(model))) < 1e-5
    assert summary(model).layers == table.layers  # followers are zero now
    shrunk = shrink(model)
    assert not shrunk.refused
    for halves, kept in ((shrunk.heads, pruner.left["heads"]), (shrunk.neurons, pruner.left["neurons"])):
        assert sum(len(half.units) - len(half.zeros) for half in halves) <= kept[0]


def test_equal_shares_in_every_matrix():
    model = bert()
    pruner = prepare(model, config(scope="local"), 6)
    train(model, pruner, 6)
    assert [int(target.masked.units.sum()) for target in pruner.outer] == [2, 32, 2, 32]
    # 1,638 of the 8,192 weights that stay, of 512 and of 1,024 in a matrix: 102.4 and 204.8
    assert {target.masked.kept_weights() for target in pruner.targets} == {102, 205}


def test_an_outer_level_without_a_density_goes_from_one_square_root_to_the_other():
    model = bert()
    settings = config(density=0.0625, structure=[HEADS, "element"], scope="local", initial_density=0.25)
    pruner = prepare(model, replace(settings, warmup=0), 6)
    assert [int(target.masked.units.sum()) for target in pruner.outer] == [2, 32, 2, 32]  # half of each
    assert pruner.density == 0.25
    train(model, pruner, 6)
    assert [int(target.masked.units.sum()) for target in pruner.outer] == [1, 16, 1, 16]
    assert pruner.density == 0.0625


def test_the_budget_of_a_head_counts_its_product_once():
    model = bert()
    pruner = prepare(model, config(density=0.25, scope="local"), 6)
    train(model, pruner, 6)
    # 4 of 8 heads, each 2 * 128 * 8 multiply-adds a token for its product, and 16,384 weights
    assert pruner.left["flops"] == (pruner.density * 16384 + 4 * 2048) / (16384 + 8 * 2048)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "ModernBERT", "ALBERT"])
def test_fused_grouped_and_shared_matrices(name):
    model = make(name)
    pruner = prepare(model, config("movement", 0.2), 6)
    train(model, pruner, 6)
    total = sum(target.weight.numel() for target in pruner.targets)
    assert pruner.density == round(0.2 * total) / total
    during, table = outputs(model, probe_inputs(model)), summary(model)
    finalize(model)
    assert difference(during, outputs(model, probe_inputs(model))) < 1e-5
    assert summary(model).layers == table.layers


def test_a_part_that_the_outer_level_does_not_name():
    model = bert()
    structure = [{"attention": {"unit": "head", "density": 0.25}}, "element"]
    pruner = prepare(model, config("movement", 0.5, structure, scope="local"), 6)
    train(model, pruner, 6)
    within = [target.masked.within is not None for target in pruner.targets]
    assert within == [True] * 4 + [False] * 2 + [True] * 4 + [False] * 2
    # 2 x (1,024 + 4,096) weights stay of 16,384; 8,192 of them are 0.8, of 256 and 2,048 in a matrix.
    assert {target.masked.kept_weights() for target in pruner.targets} == {205, 1638}


@pytest.mark.parametrize("method", ["soft_movement", "l0", "magnitude"])
def test_resuming_gives_the_same_run(method):
    whole, part = bert(), bert()
    pruner = prepare(whole, config(method), 8)
    train(whole, pruner, 5)
    folded = copy.deepcopy(whole)
    state, tensors = pruner.state_dict(), pruner.tensors()
    fold(folded)
    part.load_state_dict(folded.state_dict())
    again = prepare(part, config(method), 8)
    again.load_state_dict(state)
    again.load_tensors(tensors)
    for name, value in whole.state_dict().items():
        assert torch.equal(part.state_dict()[name], value), name
    assert again.state_dict() == state
    assert torch.equal(again.penalty(), pruner.penalty())
    torch.manual_seed(1)
    train(whole, pruner, 3)
    torch.manual_seed(1)
    train(part, again, 3)
    assert torch.equal(outputs(whole, probe_inputs(whole))[0], outputs(part, probe_inputs(part))[0])


def test_each_level_has_a_penalty():
    pruner = prepare(bert(), config("soft_movement"), 8)
    train(pruner.model, pruner, 5)
    control = pruner._control
    assert control.lambda_ > 0 < control.outer.lambda_
    method, both = pruner._method, pruner.penalty()
    assert method.penalty(pruner.targets, control, pruner.outer) == both
    control.outer = None
    assert method.penalty(pruner.targets, control) < both


def test_more_than_the_outer_level_leaves_is_refused():
    with pytest.raises(FinepruneError, match=r"density=0.6: the outer level .* leaves 50.00% of the weights"):
        prepare(bert(), config(density=0.6), 8)
    structure = [{"attention": {"unit": "head", "density": 0.05}}, "element"]
    with pytest.raises(FinepruneError, match=r"density=0.05: keeps less than one head"):
        prepare(bert(), config(structure=structure), 8)
