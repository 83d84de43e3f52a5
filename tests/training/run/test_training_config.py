"""What a recipe stands for where it gives no steps and no learning rate."""

import pytest

from fineprune.training.run.training_config import TrainingConfig, chosen_rate, chosen_steps


@pytest.mark.parametrize(
    ("examples", "steps"),
    [(0, 300), (3_668, 300), (9_888, 618), (40_000, 2_500), (67_349, 3_000)],  # 2 · 9,888 / 32 = 618
)
def test_two_epochs_within_bounds(examples, steps):
    assert chosen_steps(examples, 32) == steps


@pytest.mark.parametrize(
    ("width", "dense", "pruned"),
    [(384, 2e-4, 1e-3), (768, 3e-5, 1e-4), (128, 2e-4, 1e-3), (512, 9.1e-5, 3.8e-4), (4096, 1.4e-5, 3.8e-5)],
)
def test_rates_fall_with_the_width(width, dense, pruned):
    # 512 / 384 is 0.415 of a doubling: 2e-4 · 0.15^0.415 and 1e-3 · 0.1^0.415; 1,024 is the widest known
    assert (chosen_rate(width, pruned=False), chosen_rate(width, pruned=True)) == (dense, pruned)


def test_only_what_is_missing_is_chosen():
    empty = TrainingConfig(batch_size=8, accumulation=2)
    chosen = empty.with_chosen(examples=8_000, width=384, pruned=True)
    assert (chosen.steps, chosen.epochs, chosen.learning_rate) == (1_000, None, 1e-3)
    given = TrainingConfig(epochs=2, learning_rate=5e-5)
    assert given.with_chosen(examples=8_000, width=384, pruned=True) == given
