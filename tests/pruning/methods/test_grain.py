"""GRAIN: the literal values of its formula, and what a run does with it."""

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train
from pruning.methods.resuming import assert_resumes
from pruning.test_head_dims import BOTH
from pruning.test_structures import bert
from pruning.test_structures import train as train_bert

from fineprune import PruningConfig, finalize, prepare, shrink
from fineprune.pruning.methods.grain import Importance, Options
from fineprune.pruning.probe import difference, outputs, probe_inputs


def prepared(**options):
    return prepare(blocks(), PruningConfig("grain", density=0.25, options=options), TOTAL)


def attention(left):
    """The targets of layer 0 by kind, with so many value dims of each head of 8 left, and gradients of -2."""
    pruner = prepare(bert(), PruningConfig("grain", 0.5, structure=BOTH), TOTAL)
    found = {target.masked.grid.kind: target for target in pruner.targets[:3]}
    for head, count in enumerate(left):
        found["value_dim"].masked.units[head * 8 + count : (head + 1) * 8] = False
    for target in found.values():
        target.scores.grad = torch.full_like(target.scores, -2.0)
    return found


def observe(found, **options):
    Importance(Options(**options)).observe(list(found.values()), 1, lambda _: 0.1)


# structures.md 12.18: tanh(D/0.3) at D = 1, 0.5, 0.25. The last head has no values, and loses its queries.
def test_the_scores_by_hand():
    found = attention((8, 4, 2, 0))
    observe(found, decay=0.5)
    values = found["value_dim"].scores.view(4, 8)
    for head, (count, factor) in enumerate(((8, 0.99746), (4, 0.93111), (2, 0.68226), (0, 0.0))):
        assert values[head, :count].tolist() == [pytest.approx(0.5 * 2 * factor, abs=1e-5)] * count
        assert values[head, count:].tolist() == [-1.0] * (8 - count)
    queries = found["query_dim"].scores.view(4, 8)
    assert queries.tolist() == [[1.0] * 8] * 3 + [[0.0] * 8]
    assert found["neuron"].scores.tolist() == [1.0] * 64


def test_without_a_push_thin_heads_are_as_others():
    found = attention((8, 4, 2, 0))
    observe(found, decay=0.5, alpha=0)
    values = found["value_dim"].scores
    assert values[found["value_dim"].masked.units].unique().tolist() == [1.0]


def test_the_mean_runs_over_steps():
    found = attention((8, 8, 8, 8))
    neurons = found["neuron"].scores
    for first_order in (2.0, -6.0):  # 0 -> 0.5 -> 0.75 · 0.5 + 0.25 · 6
        neurons.grad = torch.full_like(neurons, first_order)
        observe(found, decay=0.75)
    assert neurons.unique().tolist() == [1.875]


def test_nothing_comes_back():
    pruner = prepared()
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    before = [target.masked.mask.clone() for target in pruner.targets]
    for _ in range(TOTAL):
        train(pruner, 1, optimizer=optimizer)
        now = [target.masked.mask.clone() for target in pruner.targets]
        assert not any(bool((new & ~old).any()) for new, old in zip(now, before, strict=True))
        before = now
    assert pruner.density == 0.25
    keys = set(blocks().state_dict())
    assert set(finalize(pruner.model).state_dict()) == keys


def test_thin_heads_empty_and_are_removed():
    model = bert()
    config = PruningConfig(
        "grain", 0.2, structure=BOTH, warmup=2, cooldown=4, options={"decay": 0.5, "alpha": 1}
    )
    pruner = prepare(model, config, 24)
    train_bert(model, pruner, 24)
    heads, values = pruner.left["heads"], pruner.left["value_dims"]
    assert pruner.density == pytest.approx(0.2, abs=64 / 16384)
    assert heads[0] < heads[1]
    assert values[0] / values[1] < heads[0] / heads[1]  # the heads that are left are thin, too
    before = outputs(model, probe_inputs(model))
    shrunk = shrink(finalize(model))
    assert shrunk.refused == ()
    assert sum(len(kept.units) - len(kept.zeros) for kept in shrunk.heads) == heads[0]
    assert difference(before, outputs(model, probe_inputs(model))) < 1e-5


def test_a_resume_is_bit_for_bit():
    assert_resumes(prepared, 14)


def test_before_a_gradient_the_larger_weight_stays():
    config = PruningConfig("grain", 0.5, initial_density=0.5, warmup=0, scope="local")
    for target in prepare(blocks(), config, TOTAL).targets:
        size = target.weight.abs()
        assert size[target.masked.mask].min() > size[~target.masked.mask].max()
