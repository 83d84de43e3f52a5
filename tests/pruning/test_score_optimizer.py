"""What moves the scores, and what it keeps for them."""

import copy
import math
import os
from pathlib import Path

import pytest
import torch
from several import launch
from torch import nn

from fineprune import FinepruneError, PruningConfig, prepare
from fineprune.config import METHODS, SCORE_OPTIMIZERS
from fineprune.pruning.score_optimizer import MARK, OBSERVED, RULES, adopt

OTHERS = ("sgd", "adam_bf16")
LEARNING = [name for name, traits in METHODS.items() if traits.learns_scores]


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(2)
        )
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def prepared(choice, method="movement", steps=40, **settings):
    return prepare(Blocks(), PruningConfig(method, density=0.2, score_optimizer=choice, **settings), steps)


def train(pruner, optimizer, steps, seed=1, scheduler=None, closure=False):
    generator = torch.Generator().manual_seed(seed)
    losses = []

    def loss_of(x):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(pruner.model(x), (x.sum(1) > 0).long()) + pruner.penalty()
        loss.backward()
        return loss

    for _ in range(steps):
        x = torch.randn(16, 16, generator=generator)
        loss = optimizer.step(lambda x=x: loss_of(x)) if closure else loss_of(x)
        if not closure:
            assert optimizer.step() is None
        if scheduler is not None:
            scheduler.step()
        pruner.step()
        losses.append(loss.item())
    return losses


def scores_of(pruner):
    return [target.scores.detach().clone() for target in pruner.targets]


# ---- the choice ----------------------------------------------------------------------------------------


def test_the_choices():
    assert {*SCORE_OPTIMIZERS, OBSERVED} == {"adam", *RULES}
    assert PruningConfig().score_optimizer == "adam"
    with pytest.raises(FinepruneError, match="score_optimizer='lion': movement allows 'adam' or 'sgd' or"):
        PruningConfig(score_optimizer="lion")
    with pytest.raises(FinepruneError, match="score_optimizer=None"):
        PruningConfig(score_optimizer=None)
    for method in set(METHODS) - set(LEARNING):
        with pytest.raises(FinepruneError, match=f"score_optimizer='sgd': {method} learns no scores"):
            PruningConfig(method, score_optimizer="sgd")


def test_adam_is_the_optimizer_of_the_weights():
    assert type(prepared("adam").optimizer(torch.optim.AdamW, 1e-3)) is torch.optim.AdamW
    one, two = prepared("adam"), prepared("adam")
    train(one, torch.optim.AdamW(one.parameter_groups(1e-3, 0.1), betas=(0.8, 0.9)), 20)
    train(two, two.optimizer(torch.optim.AdamW, 1e-3, 0.1, betas=(0.8, 0.9)), 20)
    for ours, theirs in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("choice", OTHERS)
def test_groups_for_an_optimizer_that_does_not_know_the_choice_are_refused(choice):
    with pytest.raises(FinepruneError, match=rf"score_optimizer='{choice}': .*pruner\.optimizer\(") as error:
        prepared(choice).parameter_groups(1e-3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("choice", OTHERS)
@pytest.mark.parametrize("method", LEARNING)
def test_the_default_rate_is_the_methods_own(choice, method):
    pruner = prepared(choice, method)
    assert pruner.score_lr == METHODS[method].score_lr
    assert prepared(choice, method, score_lr=0.5).score_lr == 0.5
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-3, 0.01)
    weights = [(1e-3, 0.01, None), (1e-3, 0.0, None)] if METHODS[method].trains_weights else []
    assert [(g["lr"], g["weight_decay"], g.get(MARK)) for g in optimizer.param_groups] == [
        *weights,
        (pruner.score_lr, 0.0, choice),
    ]


# ---- what is kept --------------------------------------------------------------------------------------


def bytes_of_scores(pruner, optimizer):
    states = [optimizer.state[target.scores] for target in pruner.targets]
    held = sum(v.numel() * v.element_size() for own in states for v in own.values() if v.numel() > 1)
    return held / sum(target.scores.numel() for target in pruner.targets)


@pytest.mark.parametrize(("choice", "size"), [("adam", 8), ("adam_bf16", 4), ("sgd", 2)])
def test_bytes_for_each_score(choice, size):
    pruner = prepared(choice)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-3)
    train(pruner, optimizer, 3)
    assert bytes_of_scores(pruner, optimizer) == size
    assert all(target.scores.dtype == torch.float32 for target in pruner.targets)


# ---- what it does --------------------------------------------------------------------------------------


def moved_by(choice, gradients, lr=0.1, kind=torch.optim.SGD):
    """A score of zeros after gradients, and the optimizer."""
    score = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = kind([{"params": [score], "lr": lr, MARK: choice}], lr=lr)
    adopt(optimizer)
    for gradient in gradients:
        score.grad = gradient
        optimizer.step()
    return score.detach(), optimizer


def test_sgd_by_hand():
    # squares: (9 + 16) / 2 = 12.5 for the first, which alone is its own root mean square
    first, optimizer = moved_by("sgd", [torch.tensor([3.0, -4.0])])
    assert first.tolist() == pytest.approx([-0.1 * 3 / math.sqrt(12.5), 0.1 * 4 / math.sqrt(12.5)], rel=1e-2)
    # then (0, 0): average 0.9 * 0.1 * g over 1 - 0.9^2; square 0.999 * 0.001 * 12.5 over 1 - 0.999^2
    second, _ = moved_by("sgd", [torch.tensor([3.0, -4.0]), torch.zeros(2)])
    size = math.sqrt(0.999 * 0.001 * 12.5 / (1 - 0.999**2))
    step = 0.1 * 0.09 * 3 / 0.19 / size
    assert (first - second)[0].item() == pytest.approx(step, rel=2e-2)
    assert set(optimizer.state[optimizer.param_groups[0]["params"][0]]) == {"average", "square"}


def test_sgd_does_not_depend_on_the_scale_of_the_loss():
    gradients = list(torch.randn(20, 6, 7, generator=torch.Generator().manual_seed(0)))
    one, _ = moved_by("sgd", gradients)
    tiny, _ = moved_by("sgd", [gradient * 2.0**-40 for gradient in gradients])
    assert torch.allclose(one, tiny, rtol=1e-5)


def test_sgd_keeps_the_order_of_accumulated_movement():
    # constant gradients: the scores end in their order (Eq. 4), unlike Adam's, which all move alike
    gradient = torch.tensor([1.0, 2.0, -3.0, 0.5])
    score, _ = moved_by("sgd", [gradient] * 10)
    assert score.argsort().tolist() == (-gradient).argsort().tolist()
    assert torch.allclose(score / score[0], gradient, rtol=2e-2)


@pytest.mark.parametrize("choice", OTHERS)
def test_zero_gradients_move_nothing(choice):
    score, _ = moved_by(choice, [torch.zeros(3)] * 4)
    assert score.tolist() == [0, 0, 0]


def against_adam(gradients, store=None):
    """The second moments after the gradients, of ours (or rounded by `store`) and of torch's Adam."""
    _, ours = moved_by("adam_bf16", gradients)
    expected = nn.Parameter(torch.zeros_like(gradients[0]))
    adam = torch.optim.Adam([expected], lr=0.1)
    for gradient in gradients:
        expected.grad = gradient
        adam.step()
    return next(iter(ours.state.values())), adam.state[expected], expected.detach()


def test_the_second_moment_does_not_stand_still():
    """Large gradients, then small ones: a thousandth of the moment has to go each step, and a bfloat16 that
    is rounded to nearest takes no step below 1/512: it would never shrink.
    """
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(500, generator=generator) for _ in range(20)]
    gradients += [torch.randn(500, generator=generator) * 0.01 for _ in range(3000)]
    own, adam, _ = against_adam(gradients)

    nearest = torch.zeros(500, dtype=torch.bfloat16)
    for gradient in gradients:
        nearest = (0.999 * nearest.float() + 0.001 * gradient**2).bfloat16()
    exact = adam["exp_avg_sq"]
    assert (nearest.float() / exact).median() > 5  # it stalls, so this is a problem that shows it
    ratio = own["spread"].float() / exact
    assert 0.98 < ratio.mean() < 1.02
    assert ratio.std() < 0.05


def test_the_second_moment_grows_where_rounding_to_nearest_would_not():
    gradients = [torch.full((4,), value) for value in [1.0] * 1000 + [1.5] * 2000]
    own, adam, _ = against_adam(gradients)
    nearest = torch.zeros(4, dtype=torch.bfloat16)
    for gradient in gradients:
        nearest = (0.999 * nearest.float() + 0.001 * gradient**2).bfloat16()
    exact = adam["exp_avg_sq"][0].item()  # on its way from 0.63 to 2.25
    assert nearest[0].item() < 0.5 * exact
    assert own["spread"][0].item() == pytest.approx(exact, rel=0.02)


def test_scores_end_where_adams_do():
    generator = torch.Generator().manual_seed(3)
    drift = torch.randn(400, generator=generator)
    gradients = [drift + torch.randn(400, generator=generator) for _ in range(500)]
    score, _ = moved_by("adam_bf16", gradients)
    *_, expected = against_adam(gradients)
    assert torch.corrcoef(torch.stack([score, expected]))[0, 1] > 0.999
    assert (score - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_every_offset_of_rounding_comes_once():
    assert len({step * 40503 % 65536 for step in range(65536)}) == 65536


@pytest.mark.parametrize("choice", OTHERS)
@pytest.mark.parametrize("method", LEARNING)
def test_a_training_reaches_its_density_and_moves_the_scores(choice, method):
    pruner = prepared(choice, method)
    before = scores_of(pruner)
    train(pruner, pruner.optimizer(torch.optim.AdamW, 1e-2), 40)
    assert pruner.density == pytest.approx(0.2, abs=0.002)
    assert all((a - b).abs().mean() > 0.05 for a, b in zip(before, scores_of(pruner), strict=True))


# ---- one optimizer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", OTHERS)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_the_weights_move_as_ever(choice, kind):
    """Scores that get no gradient: the weights must go where the plain optimizer takes them."""
    pruner, plain = prepared(choice), prepared("adam")
    for target in (*pruner.targets, *plain.targets):
        target.scores.requires_grad_(False)
    ours = pruner.optimizer(kind, 1e-2, 0.1)
    assert isinstance(ours, kind)
    assert train(pruner, ours, 5) == train(plain, plain.optimizer(kind, 1e-2, 0.1), 5)


@pytest.mark.parametrize("choice", OTHERS)
def test_settings_of_the_optimizer_that_mean_something_else_are_left_alone(choice):
    """Adafactor's eps is a pair of others than Adam's, and some optimizers have three betas."""
    pruner, like_adam = prepared(choice), prepared(choice)
    ours = pruner.optimizer(torch.optim.Adafactor, 1e-2)
    ours.param_groups[-1]["betas"] = (0.9, 0.9, 0.9)
    theirs = like_adam.optimizer(torch.optim.AdamW, 1e-2)
    train(pruner, ours, 1)
    train(like_adam, theirs, 1)
    for one, other in zip(scores_of(pruner), scores_of(like_adam), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("choice", OTHERS)
def test_state_resumes_bit_for_bit_and_stays_small(choice, tmp_path):
    whole = prepared(choice)
    optimizer = whole.optimizer(torch.optim.AdamW, 1e-2)
    train(whole, optimizer, 15)
    saved = copy.deepcopy(whole.model.state_dict()), whole.state_dict()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    expected = train(whole, optimizer, 15, seed=2)

    resumed = prepared(choice)
    other = resumed.optimizer(torch.optim.AdamW, 1e-2)
    resumed.model.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    sizes = {"sgd": 2, "adam_bf16": 4}
    assert bytes_of_scores(resumed, other) == sizes[choice]
    assert train(resumed, other, 15, seed=2) == expected
    for ours, theirs in zip(scores_of(resumed), scores_of(whole), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("choice", OTHERS)
def test_a_scheduler_moves_the_rate_of_the_scores(choice):
    pruner = prepared(choice)
    optimizer = pruner.optimizer(torch.optim.AdamW, 1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 4 else 0.0)
    train(pruner, optimizer, 4, scheduler=scheduler)
    before = scores_of(pruner)
    train(pruner, optimizer, 2, scheduler=scheduler)
    assert all(torch.equal(a, b) for a, b in zip(before, scores_of(pruner), strict=True))


@pytest.mark.parametrize("choice", OTHERS)
def test_hooks_and_a_closure_are_called_once(choice):
    first = prepared(choice)
    torch.optim.AdamW(Blocks().parameters())  # from now on torch calls hooks in AdamW.step itself
    optimizer = first.optimizer(torch.optim.AdamW, 1e-2)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    losses = train(first, optimizer, 2, closure=True)
    assert calls == ["before", "after"] * 2
    second = prepared(choice)
    assert train(second, second.optimizer(torch.optim.AdamW, 1e-2), 2) == losses


@pytest.mark.parametrize("choice", OTHERS)
def test_a_failing_step_leaves_the_groups_whole(choice):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise ValueError("broken")

    optimizer = prepared(choice).optimizer(Broken, 1e-2)
    with pytest.raises(ValueError, match="broken"):
        optimizer.step()
    assert len(optimizer.param_groups) == 3


# ---- several processes ---------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.skipif(os.environ.get("FINEPRUNE_STRESS") != "1", reason="two processes: FINEPRUNE_STRESS=1")
def test_scores_that_are_spread_over_processes_end_where_those_of_one_do(tmp_path):
    outcomes = launch(Path(__file__).with_name("score_optimizer_worker.py"), tmp_path, 2)
    assert len(outcomes) == 2 * len(SCORE_OPTIMIZERS)
    assert all(failures == [None, None] for failures in outcomes.values()), outcomes
