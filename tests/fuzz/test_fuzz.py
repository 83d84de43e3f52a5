"""A few hundred forged inputs over all readers; FINEPRUNE_STRESS=1 takes 100,000 (see runner.py)."""

import os
import random

import numpy as np
import pytest
from fuzz import runner, weights

from fineprune.errors import FinepruneWarning
from fineprune_runtime import codec

WHOLE = os.environ.get("FINEPRUNE_STRESS") == "1"
pytestmark = [
    pytest.mark.stress,
    pytest.mark.filterwarnings(f"ignore::{FinepruneWarning.__module__}.FinepruneWarning"),
]
THIN = (
    "weights",
    "shapes",
    "runtime",
    "runs",
    "arrays",
    "recipes",
    "studies",
    "data",
)  # without torch's loads


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    return runner.kinds_in(tmp_path_factory.mktemp("fuzz"), None if WHOLE else THIN)


@pytest.mark.timeout(3600)
def test_forged_inputs_are_refused_or_keep_their_meaning(kinds):
    cases = runner.run_in_workers(kinds, range(100_000), 0, 2) if WHOLE else runner.run(kinds, range(200), 0)
    print(*runner.report(cases), sep="\n")
    assert [f"case {case.index}, {case.kind}: {case.failure}" for case in cases if case.failure] == []
    # Not everything is refused at the door: some cases reach the deepest checks, and some pass them all.
    assert {case.kind for case in cases} == set(kinds)
    assert sum(case.outcome == "refused" for case in cases) > len(cases) / 3
    assert sum(case.outcome in ("same", "other", "accepted") for case in cases) > len(cases) / 10


def test_a_case_is_the_same_in_every_run(kinds):
    whole = runner.run(kinds, range(40), seed=3)
    assert [case[:4] for case in runner.run(kinds, range(20, 40), seed=3)] == [
        case[:4] for case in whole[20:]
    ]
    targets = kinds["weights"].targets
    made = [
        [weights.make_case(random.Random(f"0 {index}"), targets[0]) for index in range(50)] for _ in range(2)
    ]
    assert made[0] == made[1]


def test_every_form_of_positions_is_there(kinds):
    for target in kinds["weights"].targets:
        blobs = [np.frombuffer(target.tensors[name].data, "u1") for name in target.arrays]
        forms = {codec.read_header(blob).positions for blob in blobs}
        # Only tables are dense.
        assert forms >= ({1, 2} if target.folder.name == "float32-keep" else {0, 1, 2})


class Faulty:
    """A reader with every fault that the runner looks for."""

    share, size, seconds = 1.0, 0, 2.0

    def check(self, chance, scratch):
        fault = chance.randrange(5)
        if fault == 1:
            raise BaseException("as a panic of Rust code")
        if fault == 2:
            np.ones(60 * 2**20, np.uint8)
        if fault == 3:
            os._exit(3)
        if fault == 4:
            raise KeyError("x")
        return "same"


def test_the_runner_finds_crashes_memory_and_exceptions():
    # 160 MB on the heap, freed below something that stays: a long run's process has such holes.
    holes = [np.ones(2**20 // 10, np.uint8) for _ in range(1600)]
    stays = np.ones(2**20 // 10, np.uint8)
    del holes
    cases = runner.run_in_workers({"faulty": Faulty()}, range(40), 0, 2)
    assert [case.index for case in cases] == list(range(40))
    found = {(case.failure or "none").partition("(")[0].strip() for case in cases}
    assert {
        "none",
        "the process ended with 3",
        "KeyError: 'x'",
        "BaseException: as a panic of Rust code",
    } <= found
    assert any(name.startswith("AssertionError: took") for name in found)
    assert stays.all()
