"""SMP: frozen weights, its budgets by kind of matrix, its penalty, and its artefact."""

import copy

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from support import tiny_bert

from fineprune import FinepruneError, PruningConfig, finalize, prepare
from fineprune.pruning import kind_budgets
from fineprune.pruning.probe import probe_inputs


def prepared(**settings):
    return prepare(tiny_bert(), PruningConfig("smp", density=0.25, **settings), TOTAL)


def steps(pruner, optimizer, count):
    inputs = probe_inputs(pruner.model)
    for _ in range(count):
        optimizer.zero_grad()
        loss = pruner.model(**inputs).logits.square().mean()
        (loss + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()


def test_only_scores_and_the_head_move():
    pruner = prepared()
    of = {name: entry for name, entry in pruner.model.named_parameters() if "scores" not in name}
    before = {name: entry.detach().clone() for name, entry in of.items()}
    steps(pruner, pruner.optimizer(torch.optim.AdamW, 1e-2), 5)
    moved = {name for name, entry in of.items() if not torch.equal(entry, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    assert all(bool((target.scores != 0).any()) for target in pruner.targets)


def test_what_prepare_froze_trains_again_afterwards():
    model = tiny_bert()
    model.bert.embeddings.LayerNorm.weight.requires_grad_(False)  # by the user
    before = {name: entry.requires_grad for name, entry in model.named_parameters()}
    weights = copy.deepcopy(model.state_dict())
    pruner = prepare(model, PruningConfig("smp", density=0.25), TOTAL)
    steps(pruner, pruner.optimizer(torch.optim.AdamW, 1e-2), TOTAL)
    finalize(model)
    assert {name: entry.requires_grad for name, entry in model.named_parameters()} == before
    for name, tensor in model.state_dict().items():
        if "classifier" not in name:
            assert bool(((tensor == weights[name]) | (tensor == 0)).all()), name


def test_scores_start_at_0_and_the_penalty_rises_to_400():
    pruner = prepared(warmup=0, cooldown=2)
    assert all(bool((target.scores == 0).all()) for target in pruner.targets)
    assert pruner.lambda_ == 0
    steps(pruner, pruner.optimizer(torch.optim.AdamW, 1e-2), TOTAL)
    assert pruner.lambda_ == 400
    assert prepared(score_init="magnitude").targets[0].scores.detach().mean() == pytest.approx(1)
    quiet = prepared(penalty=0.0)
    steps(quiet, quiet.optimizer(torch.optim.AdamW, 1e-2), TOTAL)
    assert quiet.lambda_ == 0


def test_a_model_without_a_head_trains_its_scores_alone():
    pruner = prepare(blocks(), PruningConfig("smp", density=0.25), TOTAL)
    assert [entry["lr"] for entry in pruner.parameter_groups(1e-2)] == [2e-2]
    assert train(pruner, TOTAL)[-1] == 0.25


# -- budgets by kind --------------------------------------------------------------------------


def test_shares_by_hand():
    assert kind_budgets.shares([0.2, 0.4, 0.6], [10] * 3, 0.1) == pytest.approx([0.05, 0.1, 0.15])
    assert kind_budgets.shares([0.1, 0.1, 0.8], [10] * 3, 0.5) == pytest.approx([0.25, 0.25, 1.0])
    assert kind_budgets.shares([1.0, 1.0], [10, 30], 0.5) == pytest.approx([0.5, 0.5])
    assert kind_budgets.shares([0.0, 0.0], [10, 30], 0.5) == pytest.approx([0.5, 0.5])
    assert kind_budgets.shares([0.3, 0.7], [10, 10], 1.0) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("method", ["smp", "movement", "soft_movement"])
def test_each_kind_keeps_the_density_and_a_matrix_of_higher_scores_more(method):
    pruner = prepare(
        tiny_bert(), PruningConfig(method, density=0.25, scope="type", warmup=0, cooldown=2), TOTAL
    )
    with torch.no_grad():
        for number, target in enumerate(pruner.targets):
            target.scores.copy_(torch.randn(target.scores.shape) + (3.0 if number < 6 else -3.0))
    for _ in range(TOTAL - 2):
        pruner.step()
    first, second = pruner.targets[:6], pruner.targets[6:]
    for one, other in zip(first, second, strict=True):
        assert one.name.partition("layer.")[2][1:] == other.name.partition("layer.")[2][1:]
        kept = one.masked.kept_weights() + other.masked.kept_weights()
        assert abs(kept - 0.25 * 2 * one.scores.numel()) <= 1
        assert one.masked.kept_weights() > 5 * other.masked.kept_weights()


# -- refusals ---------------------------------------------------------------------------------


def test_trained_embeddings_are_refused():
    with pytest.raises(FinepruneError, match="freeze_embeddings=false: smp trains no weight of the body"):
        prepared(freeze_embeddings=False)


def test_larger_units_and_options_are_refused():
    with pytest.raises(FinepruneError, match="structure='row': smp prunes elements only"):
        PruningConfig("smp", structure="row")
    with pytest.raises(FinepruneError, match="smp has none; leave options out"):
        PruningConfig("smp", options={"penalty": 400})
