import math

import pytest
import torch
from torch import nn

from fineprune.config import PruningConfig
from fineprune.pruning.methods.hard_concrete import CLOSED
from fineprune.pruning.preparing import prepare

A = [[1.0, -5.0], [3.0, 0.5]]
B = [[10.0, -20.0], [0.1, 7.0]]
TAU = math.log(0.1 / 0.9)  # sigmoid(S) > 0.1 says S > -log 9 = -2.1972


class Toy(nn.Module):
    def __init__(self, *matrices):
        super().__init__()
        for name, matrix in zip("abcd", matrices, strict=False):
            weight = torch.tensor(matrix)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight)
            setattr(self, name, linear)


def toy(method, *, matrices=(A, B), scores=None, **settings):
    """T = 10, t_i = 2, t_f = 2: 6 steps of pruning, the last masks from step 8 on."""
    config = PruningConfig(method, targets="?", warmup=2, cooldown=2, **settings)
    pruner = prepare(Toy(*matrices), config, 10)
    for target, score in zip(pruner.targets, scores or (), strict=scores is not None):
        with torch.no_grad():
            target.scores.copy_(torch.tensor(score))
    return pruner


def to_step(pruner, step):
    while pruner.steps_done < step:
        pruner.step()
    return [target.masked.mask.int().tolist() for target in pruner.targets]


# ---- magnitude -----------------------------------------------------------------------------------------


def test_magnitude_local():
    pruner = toy("magnitude", density=0.5)
    assert to_step(pruner, 2) == [[[1, 1], [1, 1]]] * 2  # warm-up
    assert pruner.threshold is None
    # two of each: |-5| and 3; 10 and |-20|. The thresholds are 3 and 10, their mean 6.5
    assert to_step(pruner, 8) == [[[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    assert pruner.threshold == 6.5
    assert pruner.penalty().item() == 0
    assert pruner.lambda_ == 0


def test_magnitude_global():
    pruner = toy("magnitude", density=0.5, scope="global")
    # four of all eight: 20, 10, 7, 5
    assert to_step(pruner, 8) == [[[0, 1], [0, 0]], [[1, 1], [0, 1]]]
    assert pruner.threshold == 5.0


def test_magnitude_half_way():
    # x = 1/2 at step 5: v = 0.5 + 0.5 / 8 = 0.5625, of four 2.25: two; of eight 4.5: four
    assert to_step(toy("magnitude", density=0.5), 5) == [[[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    # x = 1/6 at step 3: v = 0.5 + 0.5 * 125/216 = 0.789: three of four, six of eight
    assert to_step(toy("magnitude", density=0.5), 3) == [[[1, 1], [1, 0]], [[1, 1], [0, 1]]]
    assert to_step(toy("magnitude", density=0.5, scope="global"), 3) == [[[1, 1], [1, 0]], [[1, 1], [0, 1]]]


def test_magnitude_reads_the_weight_as_it_trains():
    pruner = toy("magnitude", density=0.5)
    to_step(pruner, 8)
    weight = pruner.targets[0].weight
    assert weight.tolist() == A  # masked weights keep their value
    with torch.no_grad():
        weight[1, 1] = -4.0
    assert to_step(pruner, 9)[0] == [[0, 1], [0, 1]]  # and can return
    assert not any("scores" in name for name, _ in pruner.model.named_parameters())


# ---- movement ------------------------------------------------------------------------------------------

S_A = [[-1.0, 2.0], [0.0, 2.0]]
S_B = [[0.3, 0.2], [0.1, -9.0]]


def test_movement_local():
    pruner = toy("movement", density=0.5, scores=(S_A, S_B))
    assert to_step(pruner, 8) == [[[0, 1], [0, 1]], [[1, 1], [0, 0]]]
    assert pruner.threshold == pytest.approx((2.0 + 0.2) / 2)
    assert pruner.penalty().item() == 0


def test_movement_local_breaks_the_tie_by_index():
    pruner = toy("movement", density=0.25, scores=(S_A, S_B))
    assert to_step(pruner, 8) == [[[0, 1], [0, 0]], [[1, 0], [0, 0]]]


def test_movement_global():
    # three of eight: both 2s and 0.3; -9 is low however large
    pruner = toy("movement", density=0.375, scope="global", scores=(S_A, S_B))
    assert to_step(pruner, 8) == [[[0, 1], [0, 1]], [[1, 0], [0, 0]]]
    assert pruner.threshold == pytest.approx(0.3)


def test_movement_global_may_empty_a_matrix():
    pruner = toy("movement", density=0.25, scope="global", scores=(S_A, S_B))
    assert to_step(pruner, 8) == [[[0, 1], [0, 1]], [[0, 0], [0, 0]]]


# ---- score_init ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", [None, "magnitude"])
def test_scores_start_at_the_relative_magnitude(init):
    # mean|W| = 2
    pruner = toy("movement", matrices=([[1.0, -3.0], [2.0, 2.0]],), score_init=init)
    assert pruner.targets[0].scores.tolist() == [[0.5, 1.5], [1.0, 1.0]]
    # L0: 2.197 for the average weight
    pruner = toy("l0", matrices=([[1.0, -3.0], [2.0, 2.0]],), score_init=init)
    assert pruner.targets[0].scores.flatten().tolist() == pytest.approx([1.697, 2.697, 2.197, 2.197])


@pytest.mark.parametrize(("method", "start"), [("movement", 0.0), ("soft_movement", 0.0), ("l0", 2.197)])
def test_the_papers_start(method, start):
    scores = toy(method, score_init="zero").targets[0].scores
    assert scores.flatten().tolist() == pytest.approx([start] * 4)
    assert scores.dtype == torch.float32
    assert scores.requires_grad


def test_a_matrix_of_zeros_has_finite_scores():
    scores = toy("movement", matrices=([[0.0, 0.0]],)).targets[0].scores
    assert scores.tolist() == [[0.0, 0.0]]


# ---- soft movement -------------------------------------------------------------------------------------


def test_soft_movement_at_the_papers_threshold():
    scores = ([[0.0, -3.0], [-2.19, -2.2]], [[5.0, -2.4], [-2.3, 0.0]])
    pruner = toy("soft_movement", penalty=0.4, scores=scores)
    assert to_step(pruner, 2) == [[[1, 1], [1, 1]]] * 2
    assert (pruner.threshold, pruner.lambda_) == (None, 0.0)
    assert pruner.penalty().item() == 0
    # x = 1/2: ramp 0.875, tau 0.0875. sigmoid of -2.2, -2.3, -2.4, -3: 0.0998, 0.0911, 0.0832, 0.0474
    assert to_step(pruner, 5) == [[[1, 0], [1, 1]], [[1, 0], [1, 1]]]
    assert pruner.threshold == pytest.approx(math.log(0.0875 / 0.9125))
    assert pruner.lambda_ == pytest.approx(0.4 * 0.875)
    # tau 0.1: sigmoid(-2.19) = 0.1006 stays, sigmoid(-2.2) does not
    assert to_step(pruner, 8) == [[[1, 0], [1, 0]], [[1, 0], [0, 1]]]
    assert pruner.threshold == pytest.approx(TAU)
    assert pruner.lambda_ == 0.4
    assert pruner.density == 4 / 8


def test_soft_movement_keeps_a_floor_of_half_a_percent():
    scores = torch.full((20, 20), -5.0)
    scores[3, 4], scores[19, 0], scores[7, 7] = -3.0, -4.0, -4.5
    weights = [[1.0] * 20] * 20
    pruner = toy("soft_movement", penalty=1.0, matrices=(weights, B), scores=(scores.tolist(), S_B))
    first, second = to_step(pruner, 8)
    assert torch.tensor(first).nonzero().tolist() == [[3, 4], [19, 0]]  # 0.5 % of 400
    assert second == [[1, 1], [1, 0]]  # S_B cut at -2.197


def test_soft_movement_penalty_is_a_mean_of_means():
    # sigmoid(0) = 1/2 in a; sigmoid(log 3) = 3/4 in b: their mean is 0.625, whatever the sizes
    matrices = ([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]])
    scores = ([[0.0, 0.0], [0.0, 0.0]], [[math.log(3), math.log(3)]])
    pruner = toy("soft_movement", penalty=0.4, matrices=matrices, scores=scores)
    to_step(pruner, 8)
    penalty = pruner.penalty()
    assert penalty.item() == pytest.approx(0.25)
    penalty.backward()
    # lambda / matrices / size * s (1 - s): 0.4 / 2 / 4 / 4 and 0.4 / 2 / 2 * 3/16
    assert pruner.targets[0].scores.grad.flatten().tolist() == pytest.approx([0.0125] * 4)
    assert pruner.targets[1].scores.grad.flatten().tolist() == pytest.approx([0.01875] * 2)


def test_soft_movement_controlled_lambda():
    # Four of eight: the cut is 0. Its path ends at -log 9, so it is log 9 too high:
    # lambda = 1e-5 * 8 * e^(2 log 9) = 8e-5 * 81
    scores = ([[1.0, 2.0], [3.0, 0.0]], [[-1.0, -2.0], [-3.0, -4.0]])
    pruner = toy("soft_movement", density=0.5, scores=scores)
    assert to_step(pruner, 8) == [[[1, 1], [1, 1]], [[0, 0], [0, 0]]]
    assert pruner.threshold == 0.0
    assert pruner.lambda_ == pytest.approx(8e-5 * 81)
    assert pruner.penalty().item() > 0


def test_soft_movement_lambda_rises_with_the_height_above_the_path():
    lambdas = []
    for height in (-2.0, -0.5, 0.0, 0.5, 2.0):
        scores = [[[TAU + height + offset for offset in row] for row in matrix] for matrix in (S_A, S_B)]
        pruner = toy("soft_movement", density=0.75, scores=scores)
        to_step(pruner, 8)
        # six of eight: S_A, S_B offsets 2, 2, 0.3, 0.2, 0.1, 0
        assert pruner.threshold == pytest.approx(TAU + height, abs=1e-6)
        lambdas.append(pruner.lambda_)
    assert lambdas == pytest.approx(
        [8e-5 * math.exp(2 * height) for height in (-2.0, -0.5, 0, 0.5, 2.0)], rel=1e-4
    )


def test_soft_movement_controlled_keeps_the_floor():
    # 10 % of 404 are 40. All of a is below b, yet its best two stay
    low = (torch.arange(400.0) / 1000 - 50).reshape(20, 20).tolist()
    pruner = toy("soft_movement", density=0.01, matrices=([[1.0] * 20] * 20, B), scores=(low, S_B))
    first, second = to_step(pruner, 8)
    # 4.04 of 404: four; two of them are the floor of a, two the best of b
    assert torch.tensor(first).nonzero().tolist() == [[19, 18], [19, 19]]
    assert second == [[1, 1], [0, 0]]


# ---- l0 ------------------------------------------------------------------------------------------------


def test_l0_penalty_is_the_expected_share_of_open_gates():
    # sigmoid(2/3 log 11) = 0.831822 at S = 0, sigmoid(-1/3 log 11) = 0.310176 at S = CLOSED
    matrices = ([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0]])
    scores = ([[0.0, 0.0], [0.0, 0.0]], [[CLOSED, CLOSED]])
    pruner = toy("l0", penalty=0.4, matrices=matrices, scores=scores)
    to_step(pruner, 1)
    assert pruner.lambda_ == 0.4  # constant, from the start
    penalty = pruner.penalty()
    assert penalty.item() == pytest.approx(0.4 * (0.831822 + 0.310176) / 2, rel=1e-5)
    penalty.backward()
    # lambda / matrices / size * p (1 - p)
    assert pruner.targets[0].scores.grad.flatten().tolist() == pytest.approx([0.05 * 0.139894] * 4, rel=1e-4)
    assert pruner.targets[1].scores.grad.flatten().tolist() == pytest.approx([0.1 * 0.213967] * 2, rel=1e-4)


def test_l0_with_a_penalty_prunes_by_its_gates():
    # Open above -log 11 = -2.3979
    scores = ([[0.0, -2.39], [-2.41, 5.0]], [[-9.0, -2.4], [-2.3, 2.0]])
    pruner = toy("l0", penalty=0.4, scores=scores)
    for step in (1, 5, 9):
        assert to_step(pruner, step) == [[[1, 1], [1, 1]]] * 2
        assert pruner.density == 5 / 8
        assert pruner.threshold == CLOSED
        assert pruner.lambda_ == 0.4
    assert pruner.targets[0].masked.kept().int().tolist() == [[1, 1], [0, 1]]
    assert pruner.targets[1].masked.kept().int().tolist() == [[0, 0], [1, 1]]


def test_l0_controlled_selects_by_density():
    # Gates are open all the same (S > CLOSED): the mask does the selection, no shift is needed.
    scores = ([[1.0, 2.0], [3.0, 0.0]], [[-1.0, -1.5], [-2.0, -2.3]])
    pruner = toy("l0", density=0.5, scores=scores)
    assert to_step(pruner, 8) == [[[1, 1], [1, 1]], [[0, 0], [0, 0]]]
    assert pruner.density == 0.5
    assert pruner.targets[0].gate.offset.item() == 0
    # the cut 0 is log 11 above CLOSED: lambda = 1e-5 * 8 * e^(2 log 11) = 8e-5 * 121
    assert pruner.lambda_ == pytest.approx(8e-5 * 121)


def test_l0_controlled_opens_the_gates_that_the_density_keeps():
    scores = ([[-5.0, -6.0], [-7.0, -8.0]], [[-9.0, -10.0], [-11.0, -12.0]])
    pruner = toy("l0", density=0.5, scores=scores)
    to_step(pruner, 8)
    assert pruner.threshold == -8.0
    assert pruner.targets[0].gate.offset.item() == pytest.approx(-8 - CLOSED - 0.001, abs=1e-5)
    assert pruner.targets[0].masked.kept().all()
    assert not pruner.targets[1].masked.kept().any()
    assert pruner.density == 0.5


# ---- all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["soft_movement", "l0"])
def test_controlled_density_is_exact_at_every_step(method):
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(9, 11, generator=generator).tolist() for _ in range(3)]
    pruner = toy(method, density=0.1, matrices=matrices)
    optimizer = torch.optim.SGD(pruner.parameter_groups(1e-3))
    for step in range(1, 11):
        optimizer.zero_grad()
        inputs = torch.randn(11, generator=generator)
        loss = sum(getattr(pruner.model, name)(inputs).square().mean() for name in "abc")
        (loss + pruner.penalty()).backward()
        optimizer.step()
        with torch.no_grad():  # as noisy as a training can be
            for target in pruner.targets:
                target.scores.add_(torch.randn(9, 11, generator=generator))
        pruner.step()
        wanted = pruner.schedule.density(step, 0.1)
        assert pruner.density == round(wanted * 297) / 297
    assert pruner.density == 30 / 297


# ---- settings of a short run -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["magnitude", "movement", "soft_movement", "l0"])
def test_the_first_cut_is_the_initial_density(method):
    scope = None if method in ("soft_movement", "l0") else "global"
    pruner = toy(method, density=0.25, initial_density=0.5, scope=scope)
    to_step(pruner, 1)
    assert pruner.density == 1
    to_step(pruner, 2)
    assert pruner.density == 0.5  # four of eight at t_i, at once
    to_step(pruner, 8)
    assert pruner.density == 0.25


def test_movement_with_a_penalty_keeps_the_density():
    scores = [[[0.0, 0.0], [0.0, 0.0]], [[math.log(3), 0.0], [0.0, 0.0]]]  # sigmoid: 1/2, and one 3/4
    pruner = toy("movement", density=0.25, penalty=8.0, scores=scores)
    assert pruner.penalty().item() == 0  # in the warm-up
    to_step(pruner, 5)  # x = 1/2: the ramp is 7/8, lambda 7
    assert pruner.lambda_ == 7.0
    # R is the mean of 1/2 and of (3/4 + 3/2) / 4 = 9/16
    assert pruner.penalty().item() == pytest.approx(7 * (1 / 2 + 9 / 16) / 2)
    to_step(pruner, 8)
    assert pruner.density == 0.25
    assert pruner.lambda_ == 8.0


def test_movement_without_a_penalty_has_none():
    pruner = toy("movement", density=0.25)
    to_step(pruner, 8)
    assert not pruner.has_penalty
    assert (pruner.lambda_, pruner.penalty().item()) == (0, 0)


def test_global_movement_leaves_each_matrix_its_floor():
    a, b = torch.ones(20, 20).tolist(), torch.ones(20, 20).tolist()
    scores = [torch.full((20, 20), -1.0).tolist(), torch.rand(20, 20).tolist()]
    pruner = toy("movement", density=0.25, scope="global", matrices=(a, b), scores=scores)
    # 200 of 800 remain; the first matrix keeps 0.5 % of its 400 weights although all of them rank lower
    kept = [sum(map(sum, mask)) for mask in to_step(pruner, 8)]
    assert kept == [2, 198]


def test_fixed_masks_stay_in_the_cool_down():
    masks = {}
    for fix in (False, True):
        pruner = toy("movement", density=0.5, scores=[A, B], fix_masks=fix)
        at_final = to_step(pruner, 8)
        with torch.no_grad():
            for target in pruner.targets:
                target.scores.neg_()
        masks[fix] = (at_final, to_step(pruner, 9))
    assert masks[True][0] == masks[True][1]
    assert masks[False][0] != masks[False][1]
    assert masks[True][0] == masks[False][0]
