"""A small run of the fuzzer; `python tests/checkpoint/fuzz.py --count 100000` is a large one."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fineprune_fuzz", Path(__file__).with_name("fuzz.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def targets(fuzz, tmp_path_factory):
    return fuzz.make_targets(tmp_path_factory.mktemp("fuzz"))


def test_damaged_and_forged_checkpoints_are_refused(fuzz, targets):
    outcomes, failures = fuzz.run(targets, 2000, seed=0)
    assert failures == []
    # Not everything is refused at the door: some cases reach the deepest checks, and some pass them all.
    assert outcomes["refused"] > 1000
    assert outcomes["other"] > 100
    assert outcomes["same"] > 5
    assert sum(times for outcome, times in outcomes.items() if outcome.startswith("load")) == 10


def test_a_case_is_the_same_in_every_run(fuzz, targets):
    cases = [fuzz.make_case(fuzz.random.Random(f"0 {index}"), targets[0]) for index in range(50)]
    assert cases == [fuzz.make_case(fuzz.random.Random(f"0 {index}"), targets[0]) for index in range(50)]
    outcomes, _ = fuzz.run(targets, 60, seed=3, loads=10**6)
    later, _ = fuzz.run(targets, 20, seed=3, first=40, loads=10**6)
    outcomes.subtract(fuzz.run(targets, 40, seed=3, loads=10**6)[0])
    assert +outcomes == later


def test_every_form_of_positions_is_there(fuzz, targets):
    for target in targets:
        blobs = [fuzz.np.frombuffer(target.tensors[name].data, "u1") for name in target.arrays]
        forms = {fuzz.codec.read_header(blob).positions for blob in blobs}
        assert forms >= (
            {1, 2} if target.folder.name == "float32-keep" else {0, 1, 2}
        )  # only tables are dense
