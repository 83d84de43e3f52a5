"""The life of a pruner: prepared, stepped, saved and resumed, finalized."""

import copy
import json

import pytest
import torch
from pruning.blocks import BLOCK_WEIGHTS, TOTAL, blocks, train
from support import PRUNING
from torch import nn

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.pruning.finalizing import finalize, masked_modules
from fineprune.pruning.preparing import prepare

# ---- the whole life ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PRUNING)
@pytest.mark.parametrize("density", [0.5, 0.1, 0.03])
def test_a_plain_loop_ends_at_the_density(method, density):
    pruner = prepare(blocks(), PruningConfig(method, density=density, scope="global"), TOTAL)
    densities = train(pruner, TOTAL)
    wanted = [pruner.schedule.density(step, density) for step in range(1, TOTAL + 1)]
    # global scope: the rounding of one ranking, at every step
    assert densities == [round(value * BLOCK_WEIGHTS) / BLOCK_WEIGHTS for value in wanted]
    assert abs(densities[-1] - density) <= 0.5 / BLOCK_WEIGHTS
    model = finalize(pruner.model)
    kept = sum(int(layer.weight.count_nonzero()) for block in model.blocks for layer in (block[0], block[2]))
    assert kept == round(density * BLOCK_WEIGHTS)


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_local_density_is_exact_in_every_matrix(method):
    pruner = prepare(blocks(), PruningConfig(method, density=0.1, scope="local"), TOTAL)
    for step in range(1, TOTAL + 1):
        pruner.step()
        keep = round(pruner.schedule.density(step, 0.1) * 48)
        assert [int(target.masked.mask.sum()) for target in pruner.targets] == [keep] * 4
    assert keep == 5


def test_without_training_nothing_else_changes():
    model = blocks()
    before = copy.deepcopy(model.state_dict())
    prepare(model, PruningConfig(density=1.0), TOTAL)
    finalize(model)
    after = model.state_dict()
    assert list(after) == list(before)  # the state of an optimizer goes by the order
    assert all(torch.equal(after[name], before[name]) for name in before)
    prepare(model, PruningConfig(), TOTAL)  # and it can be prepared again


def test_a_deep_copy_can_be_finalized():
    pruner = prepare(blocks(), PruningConfig(density=0.1), TOTAL)
    train(pruner, 12)
    with pytest.warns(FinepruneWarning, match="pruning is at step 12 of 20: the density is"):
        twin = finalize(copy.deepcopy(pruner.model))
    assert type(twin.blocks[0][0]) is nn.Linear
    assert twin.embedding.weight.requires_grad
    assert twin.blocks[0][0].weight.count_nonzero() == pruner.targets[0].masked.mask.sum()
    # the original goes on as if nothing had been
    assert pruner.targets[0].masked.mask is pruner.model.blocks[0][0].parametrizations.weight[0].mask
    assert len(list(masked_modules(pruner.model))) == 4
    assert not pruner.model.embedding.weight.requires_grad
    assert train(pruner, 8)[-1] == pytest.approx(0.1, abs=0.01)


def test_a_copied_pruner_counts_its_own_steps():
    pruner = prepare(blocks(), PruningConfig(density=0.1), TOTAL)
    train(pruner, 12)
    model, twin = copy.deepcopy((pruner.model, pruner))
    assert twin.model is model
    assert train(twin, 8)[-1] == pytest.approx(0.1, abs=0.01)
    assert (twin.steps_done, pruner.steps_done) == (20, 12)
    finalize(model)  # of the copy's last step, so there is nothing to warn of
    assert train(pruner, 8)[-1] == pytest.approx(0.1, abs=0.01)
    assert torch.equal(finalize(pruner.model).blocks[0][0].weight, model.blocks[0][0].weight)


# ---- prepare -------------------------------------------------------------------------------------------


def test_embeddings_are_frozen_until_the_end():
    model = blocks()
    other = nn.Embedding(3, 3)
    other.weight.requires_grad_(False)  # frozen by its owner: it stays so
    model.other = other
    prepare(model, PruningConfig(density=1.0), TOTAL)
    assert not model.embedding.weight.requires_grad
    finalize(model)
    assert model.embedding.weight.requires_grad
    assert not model.other.weight.requires_grad
    prepare(model, PruningConfig(freeze_embeddings=False), TOTAL)
    assert model.embedding.weight.requires_grad


def test_frozen_targets_stay_frozen():
    model = blocks()
    model.blocks[0][0].weight.requires_grad_(False)
    pruner = prepare(model, PruningConfig(density=1.0), TOTAL)
    assert not pruner.targets[0].weight.requires_grad
    assert pruner.targets[0].scores.requires_grad
    finalize(model)
    assert not model.blocks[0][0].weight.requires_grad
    assert model.blocks[0][0].bias.requires_grad
    assert model.blocks[0][2].weight.requires_grad


def test_a_weight_that_is_transposed_in_memory():
    model = blocks()
    model.blocks[0][0].weight = nn.Parameter(torch.randn(6, 8).t())
    for method in PRUNING:
        pruner = prepare(model, PruningConfig(method, density=0.5), TOTAL)
        train(pruner, TOTAL)
        finalize(model)


@pytest.mark.parametrize("method", PRUNING)
def test_layers_that_share_a_weight_share_its_mask(method):
    model = blocks(tied=True)
    pruner = prepare(model, PruningConfig(method, density=0.25), TOTAL)
    assert [target.name for target in pruner.targets] == ["blocks.0.0", "blocks.0.2", "blocks.1.2"]
    first, second = (block[0].parametrizations.weight for block in model.blocks)
    assert first[0] is second[0]
    assert first.original is second.original
    train(pruner, TOTAL)
    assert pruner.density == 36 / 144  # counted once
    model.eval()
    tokens = torch.arange(7)[None]
    with torch.no_grad():
        logits = model(tokens)
        weight = model.blocks[0][0].weight.clone()
    finalize(model)
    assert model.blocks[0][0].weight is model.blocks[1][0].weight
    # folded once: a second fold would multiply by l0's gates again
    assert torch.equal(model.blocks[0][0].weight, weight)
    with torch.no_grad():
        assert torch.allclose(model(tokens), logits, atol=1e-6)


def test_what_ddp_shall_not_send_is_added_and_taken_away_again():
    model, key = blocks(), "_ddp_params_and_buffers_to_ignore"  # torch's own name
    setattr(model, key, ["head.mine"])
    prepare(model, PruningConfig(density=1.0), TOTAL)
    assert getattr(model, key)[0] == "head.mine"
    assert "blocks.0.0.parametrizations.weight.0.mask" in getattr(model, key)
    assert getattr(finalize(model), key) == ["head.mine"]
    assert not hasattr(finalize(prepare(blocks(), PruningConfig(density=1.0), TOTAL).model), key)


# ---- the optimizer's groups ----------------------------------------------------------------------------


def names(pruner, group):
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in pruner.model.named_parameters() if id(parameter) in ids}


def test_parameter_groups():
    pruner = prepare(blocks(), PruningConfig(score_lr=0.5), TOTAL)
    weights, others, scores = pruner.parameter_groups(1e-3, weight_decay=0.01)
    layers = ["blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"]
    originals = {f"{layer}.parametrizations.weight.original" for layer in layers}
    assert names(pruner, weights) == {*originals, "head.weight"}  # the embedding is frozen
    assert names(pruner, others) == {*(f"{layer}.bias" for layer in layers), "head.bias"}
    assert names(pruner, scores) == {f"{layer}.parametrizations.weight.0.scores" for layer in layers}
    rates = [(group["lr"], group["weight_decay"]) for group in (weights, others, scores)]
    assert rates == [(1e-3, 0.01), (1e-3, 0.0), (0.5, 0.0)]


@pytest.mark.parametrize(("method", "rate"), [("movement", 3e-2), ("soft_movement", 3e-2), ("l0", 1e-1)])
def test_the_methods_own_score_rate(method, rate):
    pruner = prepare(blocks(), PruningConfig(method), TOTAL)
    assert pruner.parameter_groups(1e-3)[-1]["lr"] == pruner.score_lr == rate


def test_magnitude_has_no_scores_to_learn():
    pruner = prepare(blocks(), PruningConfig("magnitude", freeze_embeddings=False), TOTAL)
    groups = pruner.parameter_groups(1e-3)
    assert [group["lr"] for group in groups] == [1e-3, 1e-3]
    assert "embedding.weight" in names(pruner, groups[0])
    assert pruner.score_lr is None


# ---- step by step --------------------------------------------------------------------------------------


def test_mask_interval():
    # 20 steps, 2 of warm-up, the final density from step 14: refreshed at 5, 10, 14, 15, 20. Of 48
    # stay 23 (x = 1/4: 0.4797), 6 (x = 2/3: 0.1333) and 5.
    pruner = prepare(blocks(), PruningConfig("magnitude", density=0.1, mask_interval=5), TOTAL)
    densities = []
    for _ in range(TOTAL):
        pruner.step()
        densities.append(pruner.density)
    changes = [step for step in range(2, TOTAL + 1) if densities[step - 1] != densities[step - 2]]
    assert changes == [5, 10, 14]
    assert [densities[step - 1] for step in (1, 5, 10, 14, 20)] == [1, 23 / 48, 6 / 48, 5 / 48, 5 / 48]


@pytest.mark.parametrize("method", ["soft_movement", "l0"])
def test_with_an_interval_the_last_masks_are_exact_all_the_same(method):
    pruner = prepare(blocks(), PruningConfig(method, density=0.1, mask_interval=7), TOTAL)
    assert train(pruner, TOTAL)[-1] == round(0.1 * BLOCK_WEIGHTS) / BLOCK_WEIGHTS


def test_at_final_density():
    pruner = prepare(blocks(), PruningConfig("magnitude"), TOTAL)
    arrived = []
    for _ in range(TOTAL):
        pruner.step()
        arrived.append(pruner.at_final_density)
    assert arrived == [False] * 13 + [True] * 7
    pruner.step()  # one more than planned is no harm
    assert pruner.density == pytest.approx(0.1, abs=0.01)


def test_a_penalty_is_always_a_scalar_to_add():
    for method in PRUNING:
        pruner = prepare(blocks(), PruningConfig(method), TOTAL)
        penalty = pruner.penalty()
        assert penalty.shape == ()
        assert penalty.item() == 0  # in the warm-up
        train(pruner, 10)
        assert (pruner.penalty().item() > 0) == (method in ("soft_movement", "l0"))


# ---- resume --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PRUNING)
def test_state_goes_through_json(method):
    config = PruningConfig(method, density=0.2)
    pruner = prepare(blocks(), config, TOTAL)
    train(pruner, 11)
    state = json.loads(json.dumps(pruner.state_dict()))
    other = prepare(blocks(seed=1), config, TOTAL)
    other.model.load_state_dict(pruner.model.state_dict())
    other.load_state_dict(state)
    assert other.steps_done == 11
    assert (other.threshold, other.lambda_, other.density) == (
        pruner.threshold,
        pruner.lambda_,
        pruner.density,
    )
    assert other.penalty().item() == pruner.penalty().item()
    torch.manual_seed(0)
    expected = train(pruner, 9, seed=1)
    torch.manual_seed(0)
    assert train(other, 9, seed=1) == expected
    assert other.threshold == pruner.threshold
    for ours, theirs in zip(other.model.parameters(), pruner.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_state_of_another_run():
    state = prepare(blocks(), PruningConfig(density=0.2), TOTAL).state_dict()
    with pytest.raises(FinepruneError, match=r"another one \(density: 0\.2 there, 0\.1 now\); resume with"):
        prepare(blocks(), PruningConfig(), TOTAL).load_state_dict(state)
    pruner = prepare(blocks(), PruningConfig(density=0.2), 30)
    with pytest.raises(FinepruneError, match=r"\(total_steps: 20 there, 30 now\)"):
        pruner.load_state_dict(state)
    assert pruner.steps_done == 0


@pytest.mark.parametrize("broken", [{}, {"config": None}, {"config": {"densty": 1}}])
def test_a_broken_state(broken):
    pruner = prepare(blocks(), PruningConfig(), TOTAL)
    with pytest.raises(FinepruneError):
        pruner.load_state_dict(broken)
    for key in pruner.state_dict():
        state = pruner.state_dict()
        del state[key]
        with pytest.raises(FinepruneError, match=f"not the state of a pruner: '{key}' is missing"):
            pruner.load_state_dict(state)


# -- how much of the mask moves ---------------------------------------------------------------


def test_changed_is_what_the_last_refresh_turned_over():
    pruner = prepare(blocks(), PruningConfig("movement", density=0.25, warmup=0, cooldown=3), 4)
    assert pruner.changed == 0.0  # all ones, before and after
    scores = [target.masked.scores for target in pruner.targets]
    with torch.no_grad():
        for score in scores:
            score.copy_(torch.arange(48.0).reshape(score.shape))
    pruner.step()  # the cool-down begins: a quarter is left of each
    assert pruner.density == 0.25
    assert pruner.changed == 0.75
    pruner.step()
    assert pruner.changed == 0.0
    with torch.no_grad():  # in one matrix, the two highest of those cut overtake
        scores[1].view(-1)[34:36] = 100.0
    pruner.step()
    assert pruner.changed == 4 / BLOCK_WEIGHTS  # two in, two out
    state = json.loads(json.dumps(pruner.state_dict()))
    assert state["changed"] == 4 / BLOCK_WEIGHTS
    again = prepare(blocks(), pruner.config, 4)
    again.load_state_dict(state)
    assert again.changed == 4 / BLOCK_WEIGHTS


def test_changed_keeps_its_value_between_refreshes():
    config = PruningConfig("magnitude", density=0.25, warmup=0, cooldown=0, mask_interval=2)
    pruner = prepare(blocks(), config, 10)
    pruner.step()
    pruner.step()
    changed = pruner.changed
    assert changed > 0
    with torch.no_grad():
        pruner.targets[0].weight.zero_()
    pruner.step()  # no refresh
    assert pruner.changed == changed
