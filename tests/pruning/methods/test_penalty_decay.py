"""Soft movement whose penalty falls to 0 over the cool-down."""

import pytest
from pruning.blocks import TOTAL, blocks

from fineprune import FinepruneError, PruningConfig, prepare


@pytest.mark.parametrize("decays", [False, True])
def test_lambda_falls_linearly_from_the_end_of_the_ramp(decays):
    config = PruningConfig(
        "soft_movement", penalty=8.0, warmup=0, cooldown=4, options={"penalty_decay": decays}
    )
    pruner = prepare(blocks(), config, TOTAL)
    found = []
    for _ in range(TOTAL):
        pruner.step()
        found.append(pruner.lambda_)
    assert found[15:] == ([8, 6, 4, 2, 0] if decays else [8] * 5)


def test_refused_settings():
    with pytest.raises(FinepruneError, match=r"options.penalty_decay=1: must be true or false"):
        PruningConfig("soft_movement", options={"penalty_decay": 1})
    with pytest.raises(FinepruneError, match=r"penalty_decay=true: there is no cool-down to fade in"):
        PruningConfig("soft_movement", cooldown=0, options={"penalty_decay": True})
    with pytest.raises(FinepruneError, match=r"penalty_decay=true: with fix_masks=true no mask follows"):
        PruningConfig("soft_movement", fix_masks=True, options={"penalty_decay": True})
