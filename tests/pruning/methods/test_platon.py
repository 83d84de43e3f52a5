"""PLATON and PINS: the literal values of the papers' formulas, and what a run does with them."""

import copy

import pytest
import torch
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize, prepare, summary
from fineprune.pruning.methods.platon import Options, SensitivityTimesUncertainty

BOTH = ("platon", "pins")


class Net(nn.Module):
    """Two blocks of two linear layers, which prepare finds by itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


def prepared(method="platon", total=40, window=4, **options):
    settings = {"density": 0.25, "warmup": 8, "cooldown": 8, "mask_interval": window}
    config = PruningConfig(method, options={"window": window, **options}, **settings)
    return prepare(Net(), config, total)


def train(pruner, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.randn(5, 6, generator=generator)
        loss = (pruner.model(x) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()
        losses.append(loss.item())
    return losses


def single(weight=1.0):
    """A pruner of one weight, whose gradients the test sets."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(weight)
    config = PruningConfig(
        "platon", targets="0", warmup=10, cooldown=0, options={"window": 1}, mask_interval=1
    )
    return prepare(model, config, 20).targets[0]


def observe(target, rule, step, first_order, gradient=0.0, lr=0.1):
    target.scores.grad = torch.full((1, 1), float(first_order))
    target.weight.grad = torch.full((1, 1), float(gradient))
    rule.observe([target], step, lambda _: lr)


def test_the_score_by_hand():
    # beta1 = beta2 = 1/2, windows of one step, I = 2 and then 4
    target = single()
    rule = SensitivityTimesUncertainty(Options(beta1=0.5, beta2=0.5, window=1), of_updated=False)
    for step, sensitivity, expected in ((1, 2.0, (1.0, 0.5, 0.5)), (2, 4.0, (2.5, 1.0, 2.5))):
        observe(target, rule, step, -sensitivity)
        found = target.masked.statistics
        assert (found["sensitivity"].item(), found["uncertainty"].item(), target.scores.item()) == expected


def test_a_window_counts_by_its_mean_at_its_end():
    target = single(weight=-7.0)
    rule = SensitivityTimesUncertainty(Options(beta1=0.5, beta2=0.5, window=2), of_updated=False)
    observe(target, rule, 1, 1.0)
    assert target.scores.item() == 7.0  # the size of the weight, until a window has ended
    observe(target, rule, 2, 3.0)  # the mean is 2
    assert target.scores.item() == 0.5
    observe(target, rule, 3, 100.0)
    assert target.scores.item() == 0.5


@pytest.mark.parametrize(("weight", "gradient", "expected"), [(2, 1, 1.9), (-1, 2, 2.4), (0.05, 1, 0.05)])
def test_pins_takes_the_sensitivity_of_the_updated_weight(weight, gradient, expected):
    target = single(weight)
    rule = SensitivityTimesUncertainty(Options(beta1=0.0, beta2=0.0, window=1), of_updated=True)
    observe(target, rule, 1, weight * gradient, gradient)
    assert target.masked.statistics["window_mean"].item() == pytest.approx(expected)


@pytest.mark.parametrize("method", BOTH)
def test_a_run_ends_at_its_density_and_is_an_ordinary_model(method):
    pruner = prepared(method)
    keys = set(Net().state_dict())
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4, 4]  # matrices, biases, scores
    assert not any(optimizer.state.get(target.scores) for target in pruner.targets)
    losses = train(pruner, optimizer, 40)
    assert losses[-1] < losses[0]
    assert pruner.density == 0.25
    assert summary(pruner.model).parameters == sum(entry.numel() for entry in Net().parameters())
    assert set(finalize(pruner.model).state_dict()) == keys


def test_cut_weights_are_zero_and_can_come_back():
    pruner = prepared()
    optimizer = pruner.optimizer(torch.optim.SGD, 0.05)
    train(pruner, optimizer, 20)
    target = pruner.targets[0]
    cut = ~target.masked.mask.clone()
    assert cut.any()
    assert not target.weight[cut].any()
    train(pruner, optimizer, 1, seed=1)
    assert target.weight[cut].any()  # its gradient is not masked
    kept = prepared(returns="kept")
    train(kept, kept.optimizer(torch.optim.SGD, 0.05), 20)
    assert kept.targets[0].weight[~kept.targets[0].masked.mask].all()


@pytest.mark.parametrize("method", BOTH)
def test_a_resume_within_a_window_is_bit_for_bit(method):
    whole = prepared(method)
    optimizer = whole.optimizer(torch.optim.AdamW, 1e-2)
    train(whole, optimizer, 18)
    saved = copy.deepcopy((whole.model.state_dict(), whole.state_dict(), optimizer.state_dict()))
    expected = train(whole, optimizer, 22, seed=1)
    resumed = prepared(method)
    other = resumed.optimizer(torch.optim.AdamW, 1e-2)
    resumed.model.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    assert train(resumed, other, 22, seed=1) == expected
    for ours, theirs in zip(resumed.targets, whole.targets, strict=True):
        assert torch.equal(ours.masked.mask, theirs.masked.mask)


def test_groups_alone_are_refused():
    with pytest.raises(FinepruneError, match=r"method='platon': it reads the gradients .*pruner\.attach\("):
        prepared().parameter_groups(1e-3)


def test_an_optimizer_that_was_not_attached_is_told():
    pruner = prepared()
    weights = [entry for entry in pruner.model.parameters() if entry.requires_grad]
    with pytest.raises(FinepruneError, match="no gradient was shown to it"):
        train(pruner, torch.optim.SGD(weights, 0.1), 1)


def test_a_last_cut_before_the_first_window_ends_is_refused():
    wanted = r"total_steps=40: the last cut is after 8 steps \(cooldown=32\), .* first window of 10 steps"
    with pytest.raises(FinepruneError, match=wanted):
        prepare(Net(), PruningConfig("platon", warmup=3, cooldown=32), 40)


@pytest.mark.parametrize("method", BOTH)
def test_a_student_that_is_its_own_teacher_is_first_cut_by_size(method):
    """Its gradient is 0 until something is cut; ties by position would cut the last matrix."""
    pruner, teacher = prepared(method), Net()
    optimizer = pruner.optimizer(torch.optim.SGD, 0.1)
    while pruner.density == 1:
        x = torch.randn(5, 6)
        optimizer.zero_grad()
        (pruner.model(x) - teacher(x)).square().mean().backward()
        optimizer.step()
        pruner.step()
    weights = [layer.weight for layer in teacher.modules() if isinstance(layer, nn.Linear)]
    kept = sum(int(target.masked.mask.sum()) for target in pruner.targets)
    least = torch.cat([weight.detach().abs().flatten() for weight in weights]).sort().values[-kept]
    for target, weight in zip(pruner.targets, weights, strict=True):
        assert torch.equal(target.masked.mask, weight.abs() >= least)


@pytest.mark.parametrize("method", BOTH)
def test_zeros_come_last_until_a_window_has_ended(method):
    """A run that goes on from a pruned model cuts at once: its first masks are those of the model."""
    model = Net()
    config = PruningConfig(method, 0.125, initial_density=0.5, warmup=0, cooldown=8)
    matrices = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in matrices:
            layer.weight[:, ::2] = 0
    expected = [layer.weight != 0 for layer in matrices]
    pruner = prepare(model, config, 40)
    assert all(torch.equal(t.masked.mask, mask) for t, mask in zip(pruner.targets, expected, strict=True))
    train(pruner, pruner.optimizer(torch.optim.AdamW, 1e-2), 9)
    assert all(torch.equal(t.masked.mask, mask) for t, mask in zip(pruner.targets, expected, strict=True))
    train(pruner, pruner.optimizer(torch.optim.AdamW, 1e-2), 31)
    assert pruner.density == 0.125
