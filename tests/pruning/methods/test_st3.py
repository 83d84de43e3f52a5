"""ST-3: the literal values of its formula, and what a run does with it."""

import copy

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from pruning.methods.resuming import assert_resumes
from torch.nn.utils import parametrize

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.pruning.masked_weight import MaskedWeight
from fineprune.pruning.methods.st3 import RowScaled, SoftThreshold

ROW = [3.0, -1.0, 0.5, 2.0]


def prepared(**options):
    return prepare(blocks(), PruningConfig("st3", density=0.25, warmup=2, options=options), TOTAL)


def linear(form, threshold, mask):
    """A layer of one row, whose form and threshold the test sets."""
    layer = torch.nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([ROW]))
    masked = MaskedWeight(layer.weight, None)
    masked.form = form(layer.weight)
    masked.form.threshold.fill_(threshold)
    masked.mask.copy_(torch.tensor([mask]))
    parametrize.register_parametrization(layer, "weight", masked, unsafe=True)
    return layer


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # mean|W ⊙ M| / mean|W| = 1.25/1.625 = 0.769231, so c = 1.01/0.779231 = 1.296150
        (RowScaled, [1.944225, 0.0, 0.0, 0.648075]),
        (SoftThreshold, [1.5, 0.0, 0.0, 0.5]),
    ],
)
def test_the_weight_by_hand(form, expected):
    layer = linear(form, 1.5, [True, False, False, True])
    assert layer.weight.tolist()[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("threshold", "expected"), [(1.5, [1.0, 2.0, 3.0, 4.0]), (0.0, [1.0, 0.0, 0.0, 4.0])]
)
def test_all_weights_get_their_gradient_while_the_threshold_cuts(threshold, expected):
    layer = linear(RowScaled, threshold, [True, False, False, True])
    layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).backward()
    assert layer.parametrizations.weight.original.grad.tolist()[0] == expected


@pytest.mark.parametrize("form", [RowScaled, SoftThreshold])
def test_without_a_threshold_it_is_the_masked_weight(form):
    assert linear(form, 0.0, [True, False, True, True]).weight.tolist() == [[3.0, 0.0, 0.5, 2.0]]


def test_the_threshold_is_half_way_between_what_stays_and_what_goes():
    pruner = prepared()
    train(pruner, 8, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    masks = [target.masked.mask for target in pruner.targets]
    sizes = [target.weight.detach().abs() for target in pruner.targets]
    least = min(float(size[mask].min()) for size, mask in zip(sizes, masks, strict=True))
    most = max(float(size[~mask].max()) for size, mask in zip(sizes, masks, strict=True))
    (threshold,) = {target.masked.form.threshold.item() for target in pruner.targets}
    assert threshold == pytest.approx((least + most) / 2)
    assert most < threshold < least


def test_at_the_final_density_the_weights_are_folded():
    pruner = prepared()
    optimizer = pruner.optimizer(torch.optim.SGD, 0.0)
    train(pruner, 13, optimizer=optimizer)
    cut = pruner.targets[0]
    assert cut.weight[~cut.masked.mask].all()  # W is kept under the threshold
    train(pruner, 1, optimizer=optimizer)
    assert pruner.at_final_density
    for target in pruner.targets:
        assert target.masked.form.threshold.item() == 0
        assert torch.equal(target.weight != 0, target.masked.mask)
        assert torch.equal(target.module.weight, target.weight)
    train(pruner, 6, optimizer=optimizer)
    assert torch.equal(cut.weight != 0, cut.masked.mask)


def test_a_run_ends_at_its_density_and_is_an_ordinary_model():
    pruner, keys = prepared(), set(blocks().state_dict())
    assert train(pruner, TOTAL, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))[-1] == 0.25
    tokens = torch.arange(7).view(1, 7)
    during = pruner.model(tokens)
    assert set(finalize(pruner.model).state_dict()) == keys
    assert torch.equal(pruner.model(tokens), during)


@pytest.mark.filterwarnings("ignore:.*density")
def test_a_run_that_is_stopped_early_answers_as_before():
    pruner = prepared()
    train(pruner, 8, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    tokens = torch.arange(7).view(1, 7)
    during = pruner.model(tokens)
    torch.testing.assert_close(finalize(copy.deepcopy(pruner.model))(tokens), during)


def test_a_checkpoint_with_folded_weights_has_the_others_beside_them():
    pruner = prepared()
    train(pruner, 8, optimizer=pruner.optimizer(torch.optim.AdamW, 1e-2))
    saved = pruner.tensors()
    assert saved["blocks.0.0.hidden"].numel() == 48  # all of them
    other = prepared()
    with torch.no_grad():
        for ours, theirs in zip(other.targets, pruner.targets, strict=True):
            ours.weight.copy_(theirs.masked.fold(theirs.weight))
    other.load_tensors(saved)
    for ours, theirs in zip(other.targets, pruner.targets, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.module.weight, theirs.module.weight)


@pytest.mark.parametrize("steps", [9, 14, 16])
def test_a_resume_is_bit_for_bit(steps):
    assert_resumes(prepared, steps)


def test_frozen_weights_are_refused():
    model = blocks()
    model.blocks[0][0].weight.requires_grad_(False)
    with pytest.raises(FinepruneError, match=r"blocks\.0\.0: is frozen, and st3 changes the values"):
        prepare(model, PruningConfig("st3"), TOTAL)
