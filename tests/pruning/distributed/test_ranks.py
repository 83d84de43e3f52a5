"""Several processes do what one does: the checks are in sharded_worker.py, and run once for all tests."""

import os
from pathlib import Path

import pytest
import torch
from several import launch

from fineprune.pruning.distributed import ranks

WORKER = Path(__file__).with_name("sharded_worker.py")
WHOLE = os.environ.get("FINEPRUNE_STRESS") == "1"


def fails(outcomes):
    return "\n".join(
        f"{name}, process {rank}: {failure}"
        for name, failures in outcomes.items()
        for rank, failure in enumerate(failures)
        if failure
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return launch(WORKER, tmp_path_factory.mktemp("two"), 2)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("selection", 12),
        ("large", 1),
        ("nan", 1),
        ("columns", 1),
        ("penalty", 2),
        ("gathered", 2),
        ("answers", 2),
        ("masks", 1),
        ("flags", 1),
        ("differ", 4),
        ("refused", 1),
        ("pull", 2),
        ("broadcast", 1),
        ("gates", 1),
        ("train-ddp", 10),
        ("train-fsdp", 17),
        ("end", 0),
    ],
)
def test_two_processes(outcomes, kind, count):
    own = {name: failures for name, failures in outcomes.items() if name.startswith(kind)}
    assert not fails(own), fails(own)
    assert len(own) == count
    assert all(len(failures) == 2 for failures in own.values())


@pytest.mark.stress
@pytest.mark.skipif(not WHOLE, reason="every engine, method, scope and precision: FINEPRUNE_STRESS=1")
@pytest.mark.parametrize("processes", [2, 3])
def test_every_combination(tmp_path, processes):
    outcomes = launch(WORKER, tmp_path, processes, "whole")
    assert not fails(outcomes), fails(outcomes)
    assert len(outcomes) > 100
    assert all(len(failures) == ranks for failures in outcomes.values())


def test_mean_is_that_of_torch_to_the_bit():
    values = torch.rand(33, 65, generator=torch.Generator().manual_seed(0))
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    (ranks.mean(torch.sigmoid(ours)) * 37.5).backward()
    (torch.sigmoid(theirs).mean() * 37.5).backward()
    assert torch.equal(ranks.mean(ours), theirs.mean())
    assert torch.equal(ours.grad, theirs.grad)
