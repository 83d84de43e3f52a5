"""A density that is not the one asked for is reported once, where the model leaves the training."""

import copy
import warnings

import pytest
from pruning.blocks import TOTAL, blocks

from fineprune.config import PruningConfig
from fineprune.errors import FinepruneWarning
from fineprune.pruning.finalizing import finalize, fold
from fineprune.pruning.preparing import prepare
from fineprune.pruning.progress import compare


def heard(call, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments)
    assert all(entry.category is FinepruneWarning for entry in caught)
    return [str(entry.message) for entry in caught]


@pytest.mark.parametrize(
    ("config", "steps", "said"),
    [
        ({"density": 0.25}, 0, "at step 0 of 20 (pruner.step() was never called): the density is 1"),
        ({"density": 0.25}, 7, "at step 7 of 20: the density is"),
        ({"density": 0.25}, TOTAL - 6, None),  # in the cool-down
        ({"density": 0.25}, TOTAL, None),
        ({"density": 0.25}, TOTAL + 5, None),
        ({"density": 1.0}, 3, None),
        ({"density": 0.3, "structure": "row"}, TOTAL, None),  # as near as whole rows can be
        ({"density": 0.3, "structure": "row"}, 7, "at step 7 of 20: the density is"),
        ({"method": "soft_movement", "penalty": 5.0}, 3, "at step 3 of 20: the density is 1; train"),
        ({"method": "soft_movement", "penalty": 5.0}, TOTAL, None),
    ],
)  # fmt: skip
def test_a_training_that_is_cut_short(config, steps, said):
    pruner = prepare(blocks(), PruningConfig(**({"method": "magnitude"} | config)), TOTAL)
    for _ in range(steps):
        pruner.step()
    assert heard(fold, copy.deepcopy(pruner.model)) == []  # a copy in the middle of the training
    texts = heard(pruner.report)
    assert len(texts) == (said is not None)
    assert all(said in text for text in texts)
    assert heard(finalize, copy.deepcopy(pruner.model)) == []  # no second time
    assert heard(finalize, pruner.model) == []


def test_a_density_that_is_missed_by_little_has_the_digits_that_show_it():
    pruner = prepare(blocks(), PruningConfig(density=0.2), TOTAL)
    (text,) = heard(pruner._progress.report, 0.20041)
    assert "the density is 0.2004 instead of 0.2;" in text


def test_finalize_reports_it_by_itself():
    pruner = prepare(blocks(), PruningConfig(density=0.25), TOTAL)
    (text,) = heard(finalize, pruner.model)
    assert text.startswith("pruning is at step 0 of 20")
    assert heard(compare, pruner.model, PruningConfig(density=0.25), 1.0) == []  # it was said


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (PruningConfig(density=0.2), True),
        (PruningConfig(density=0.29), False),
        (PruningConfig(density=0.2, targets=("query",)), False),  # which the density is not of
        (PruningConfig("soft_movement", density=0.2, penalty=5.0), False),
        (PruningConfig(density=0.2, structure="row"), True),
        (PruningConfig(density=0.2, structure={"feed_forward": "row"}), False),
        (
            PruningConfig(density=0.2, scope="global", structure={"attention": "head"}, budget="flops"),
            False,
        ),
        (PruningConfig("keep_zeros"), False),
        (None, False),
    ],
)
def test_a_config_that_is_saved_with_another_density(config, said):
    model = blocks()
    texts = heard(compare, model, config, 0.3)
    assert len(texts) == said
    assert all("the density is 0.3, and config says 0.2" in text for text in texts)
