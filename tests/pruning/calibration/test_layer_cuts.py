"""The cuts of one matrix: literal cases, exact counts, and errors of the output."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune import FinepruneError
from fineprune.pruning.calibration import alps, sparsegpt, wanda
from fineprune.pruning.calibration.calibrate import CUTS
from fineprune.pruning.calibration.layer import Layer

GRAM = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
ROW = torch.tensor([[1.0, 2.0]], dtype=torch.float64)


def layer(outputs, inputs, samples=200, seed=0, dead=()):
    """A random matrix, and inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(samples, inputs, generator=generator, dtype=torch.float64)
    mixed = mixed @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    mixed[:, list(dead)] = 0
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return Layer("matrix", weight, 2 / samples * mixed.mT @ mixed)


def test_sparsegpt_corrects_what_remains():
    """H^-1 = [[2, -1], [-1, 2]] / 3 = U^T U, U = [[0.8165, -0.4082], ...]: 2 + 1 / 0.8165 * 0.4082 = 2.5.

    Of the two entries, 1 / 0.8165 squared is 1.5 and 2 / 0.7071 squared is 8: the first is cut.
    """
    cut = sparsegpt.cut(Layer("matrix", ROW, GRAM, damping=0.0), 1)
    torch.testing.assert_close(cut, torch.tensor([[0.0, 2.5]], dtype=torch.float64))


def test_alps_fits_the_same_row_exactly():
    """On the support {2} the best value is (1 * 1 + 2 * 2) / 2 = 2.5."""
    cut = alps.cut(Layer("matrix", ROW, GRAM, damping=0.0), 1)
    torch.testing.assert_close(cut, torch.tensor([[0.0, 2.5]], dtype=torch.float64))


def test_wanda_ranks_in_each_row_by_weight_times_norm():
    """Norms 3 and 1: the scores are [[3, 2], [9, 0.5]]."""
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    gram = torch.tensor([[9.0, 0.0], [0.0, 1.0]])
    cut = wanda.cut(Layer("matrix", weight, gram), 2)
    assert cut.tolist() == [[1, 0], [3, 0]]


def test_wanda_gives_what_the_rows_do_not_divide_to_the_best_next_weights():
    """One a row, then one more: the second of the rows are 2 and 0.5."""
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    gram = torch.tensor([[9.0, 0.0], [0.0, 1.0]])
    assert wanda.cut(Layer("matrix", weight, gram), 3).tolist() == [[1, -2], [3, 0]]


@pytest.mark.parametrize("name", CUTS)
@settings(deadline=None, max_examples=15)
@given(outputs=st.integers(1, 9), inputs=st.integers(1, 12), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_counts_are_exact(name, outputs, inputs, share, seed):
    keep = max(1, round(share * outputs * inputs))
    cut = CUTS[name](layer(outputs, inputs, seed=seed), keep)
    assert int(torch.count_nonzero(cut)) == keep


def test_counts_are_exact_over_several_blocks_of_columns():
    for keep in (1, 333, 1500):
        assert int(torch.count_nonzero(sparsegpt.cut(layer(5, 300, 900), keep))) == keep


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "alps"])
def test_columns_of_inputs_that_are_always_0_go_first(name):
    cut = CUTS[name](layer(4, 6, dead=(1, 4)), 16)
    assert cut.count_nonzero(0).tolist() == [4, 0, 4, 4, 0, 4]
    one = layer(4, 6, dead=(1, 4))
    cut = CUTS[name](one, 20)
    assert int(torch.count_nonzero(cut)) == 20
    unseen = cut[:, [1, 4]]
    assert torch.equal(unseen, one.weight[:, [1, 4]] * (unseen != 0))  # as they were
    assert torch.equal(CUTS[name](one, 24)[:, [1, 4]], one.weight[:, [1, 4]])


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_alps_is_nearest_to_the_output(density):
    one = layer(32, 48, samples=400)
    errors = {name: one.error(cut(one, round(density * 32 * 48))) for name, cut in CUTS.items()}
    assert errors.pop("alps") < 0.8 * min(errors.values())


@settings(deadline=None, max_examples=15)
@given(outputs=st.integers(1, 9), inputs=st.integers(1, 12), share=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_alps_is_never_farther_than_magnitude(outputs, inputs, share, seed):
    one, keep = layer(outputs, inputs, seed=seed), max(1, round(share * outputs * inputs))
    assert one.error(alps.cut(one, keep)) <= one.error(CUTS["magnitude"](one, keep)) + 1e-6


def test_fit_is_exact_on_few_entries():
    """Row by row, H_SS^-1 H_S w."""
    one, mask = layer(3, 9), torch.arange(27).reshape(3, 9) % 4 == 0
    fitted = alps.fit(one.gram, one.weight, one.weight, mask)
    for row, entries, weight in zip(fitted, mask, one.weight, strict=True):
        exact = torch.linalg.solve(one.gram[entries][:, entries], one.gram[entries] @ weight)
        torch.testing.assert_close(row[entries], exact)
        assert not row[~entries].any()


def test_the_error_is_that_of_the_output():
    """W x of (1, 2) under H: 2 + 4 + 8 = 14; of the difference (1, 0): 2."""
    assert Layer("matrix", ROW, GRAM).error(torch.tensor([[0.0, 2.0]]).double()) == pytest.approx(
        (2 / 14) ** 0.5
    )
    assert Layer("matrix", 0 * ROW, GRAM).error(ROW * 0) == 0


@pytest.mark.parametrize("name", ["sparsegpt", "alps"])
def test_inputs_that_cannot_be_inverted_are_named(name):
    broken = Layer("layer.3.query", ROW, torch.tensor([[1.0, 4.0], [4.0, 1.0]]).double())
    with pytest.raises(FinepruneError, match=r"layer\.3\.query: the second moments .* method='wanda'"):
        CUTS[name](broken, 1)
