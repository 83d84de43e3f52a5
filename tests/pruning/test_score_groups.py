"""An optimizer that somebody else made takes the scores over."""

import copy

import pytest
import torch
from pruning.blocks import TOTAL, blocks, train

from fineprune import FinepruneError, FinepruneWarning, PruningConfig, prepare


def prepared(**settings):
    return prepare(blocks(), PruningConfig(density=0.25, **settings), TOTAL)


def hosts(pruner, kind=torch.optim.AdamW):
    """An optimizer over all parameters in one group, as a host that knows nothing of scores makes it."""
    return kind(
        [entry for entry in pruner.model.parameters() if entry.requires_grad], lr=1e-2, weight_decay=0.1
    )


def test_scores_leave_the_groups_of_the_host():
    pruner = prepared(score_lr=0.5)
    optimizer = hosts(pruner)
    every = len(optimizer.param_groups[0]["params"])
    pruner.attach(optimizer)
    weights, scores = optimizer.param_groups
    assert {id(entry) for entry in scores["params"]} == {id(target.scores) for target in pruner.targets}
    assert len(weights["params"]) == every - len(pruner.targets)
    assert (weights["lr"], weights["weight_decay"]) == (1e-2, 0.1)
    assert (scores["lr"], scores["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize("choice", ["adam", "sgd", "adam_bf16"])
def test_an_attached_optimizer_trains_as_the_pruners_own(choice):
    one, two = prepared(score_optimizer=choice), prepared(score_optimizer=choice)
    attached = torch.optim.AdamW(
        [
            {
                "params": [p for p in one.model.parameters() if p.requires_grad and p.ndim > 1],
                "weight_decay": 0.1,
            },
            {
                "params": [p for p in one.model.parameters() if p.requires_grad and p.ndim == 1],
                "weight_decay": 0.0,
            },
        ],
        lr=1e-2,
    )
    one.attach(attached)
    own = two.optimizer(torch.optim.AdamW, 1e-2, 0.1)
    assert isinstance(attached, torch.optim.AdamW)
    assert train(one, TOTAL, optimizer=attached) == train(two, TOTAL, optimizer=own)
    for ours, theirs in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_optimizer_that_has_stepped():
    pruner = prepared()
    optimizer = hosts(pruner)
    with pytest.warns(FinepruneWarning, match="the optimizer moves the scores at the weights' rate"):
        train(pruner, 1, optimizer=optimizer)
    with pytest.raises(FinepruneError, match="the optimizer has stepped already"):
        pruner.attach(optimizer)


def test_an_optimizer_with_a_scheduler():
    pruner = prepared()
    optimizer = hosts(pruner)
    torch.optim.lr_scheduler.LinearLR(optimizer)
    with pytest.raises(FinepruneError, match="a learning rate scheduler was made before the scores had"):
        pruner.attach(optimizer)
    assert len(optimizer.param_groups) == 1
    alone = prepare(blocks(), PruningConfig("magnitude"), TOTAL)  # has no scores, so nothing is added
    optimizer = hosts(alone)
    torch.optim.lr_scheduler.LinearLR(optimizer)
    alone.attach(optimizer)


@pytest.mark.parametrize("method", ["admm", "powerprop"])
def test_an_optimizer_that_is_attached_again(method):
    ends = []
    for again in (False, True):
        pruner = prepare(blocks(), PruningConfig(method, density=0.25), TOTAL)
        optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
        if again:
            pruner.attach(optimizer)
        ends.append(train(pruner, TOTAL, optimizer=optimizer))
        ends.append([parameter.tolist() for parameter in pruner.model.parameters()])
    assert ends[:2] == ends[2:]


def test_a_method_without_scores_leaves_the_groups_as_they_are():
    pruner = prepare(blocks(), PruningConfig("magnitude"), TOTAL)
    optimizer = hosts(pruner)
    before = copy.copy(optimizer.param_groups)
    pruner.attach(optimizer)
    assert optimizer.param_groups == before


@pytest.mark.parametrize(
    ("method", "choice"), [("movement", "adam"), ("movement", "adam_bf16"), ("fisher", "adam")]
)
def test_adagrad_makes_its_state_before_the_first_step(method, choice):
    for make in (hosts, lambda pruner, kind: pruner.optimizer(kind, 1e-2)):
        pruner = prepare(blocks(), PruningConfig(method, density=0.25, score_optimizer=choice), TOTAL)
        optimizer = make(pruner, torch.optim.Adagrad)
        pruner.attach(optimizer)
        scores = [target.scores for target in pruner.targets]
        assert [score in optimizer.state for score in scores] == [choice == "adam" and method != "fisher"] * 4
        before = scores[0].tolist()
        assert train(pruner, TOTAL, optimizer=optimizer)[-1] == 0.25
        assert scores[0].tolist() != before
        assert optimizer.state_dict()["state"]


def test_adagrad_without_the_scores():
    pruner = prepared()
    optimizer = torch.optim.Adagrad([target.weight for target in pruner.targets])
    with pytest.raises(FinepruneError, match="Adagrad makes its state when it is built, and was"):
        pruner.attach(optimizer)


@pytest.mark.parametrize("choice", ["adam", "sgd"])
def test_a_copy_of_an_optimizer_that_has_the_scores_apart(choice):
    pruner = prepared(score_optimizer=choice)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    train(pruner, 3, optimizer=optimizer)
    twin, copied = copy.deepcopy((pruner, optimizer))
    groups = copy.copy(copied.param_groups)
    twin.attach(copied)
    assert copied.param_groups == groups
    assert train(twin, 5, optimizer=copied) == train(pruner, 5, optimizer=optimizer)
    again, other = copy.deepcopy((twin, copied))
    other.param_groups[-1]["lr"] = 1e-3  # not the scores' rate
    with pytest.raises(FinepruneError, match="the optimizer has stepped already"):
        again.attach(other)
