"""Trainers and runs on two processes, against one: what processes_worker.py left is compared here."""

import importlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from several import launch
from transformers import BertForSequenceClassification

from fineprune import FinepruneError, FinepruneWarning, summary
from fineprune.training.host import processes
from fineprune.training.run.train import run_recipe

FOLDER = Path(__file__).parent
WHOLE = os.environ.get("FINEPRUNE_STRESS") == "1"
TIMES = ("_runtime", "_per_second", "total_flos")


@pytest.fixture(scope="module")
def worker():
    spec = importlib.util.spec_from_file_location("processes_worker", FOLDER / "processes_worker.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def done(tmp_path_factory, save_body, worker):
    """The folder with the results of one process and of two."""
    folder = tmp_path_factory.mktemp("processes")
    body = save_body(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for name, count, more in (("train", 48, ""), ("validation", 21, " a")):
        lines = [
            f"{'very ' * (i % 5)}{('bad', 'good')[i % 2]} film{more}\t{('neg', 'pos')[i % 2]}"
            for i in range(count)
        ]
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    values = {
        "model": body,
        "task": {"train": str(folder / "train.tsv"), "validation": str(folder / "validation.tsv")},
        "training": {
            "steps": 10,
            "batch_size": 4,
            "accumulation": 2,
            "learning_rate": 1e-2,
            "max_length": 16,
            "evaluate_every": 5,
            "group_by_length": True,
        },
        "pruning": {"method": "movement", "density": 0.25, "scope": "global"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    run_recipe(worker.Recipe.load(folder / "recipe.yaml"), folder / "run-one", progress=False)
    worker.trained(folder, "one")
    return SimpleNamespace(folder=folder, outcomes=launch(FOLDER / "processes_worker.py", folder, 2))


def without_times(lines):
    return [
        {name: value for name, value in line.items() if not name.endswith(TIMES)}
        for line in lines
        if "train_runtime" not in line
    ]


def same_logs(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(without_times(ours), without_times(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def logs(folder, name):
    history, density = json.loads((folder / f"{name}.json").read_text())
    assert density == 0.25
    return history


def test_every_check_of_the_workers(done):
    failures = [f"{name}: {failure}" for name, both in done.outcomes.items() for failure in both if failure]
    assert not failures, "\n".join(failures)
    assert all(len(both) == 2 for both in done.outcomes.values())
    assert len(done.outcomes) == 16


def test_a_recipe_gives_the_same_run(done):
    results = [
        json.loads((done.folder / name / "results.json").read_text()) for name in ("run-one", "run-two")
    ]
    assert [entry.pop("environment")["processes"] for entry in results] == [1, 2]
    for entry in results:
        del entry["seconds"]
    scores = [entry.pop("scores") for entry in results]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-5)
    assert results[0] == results[1]
    lines = [
        [json.loads(line) for line in (done.folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run-one", "run-two")
    ]
    same_logs(*lines)
    names = [{path.name for path in (done.folder / name).iterdir()} for name in ("run-one", "run-two")]
    assert names[0] == names[1]


@pytest.mark.parametrize("name", ["two", "two-resumed", "fsdp", "fsdp-resumed"])
def test_the_same_training(done, name):
    """But for the last batch of an epoch, the sixth and the twelfth, which two processes fill up."""
    ours, one = logs(done.folder, name), logs(done.folder, "one")
    if name == "two-resumed":  # from what one process had after the first epoch
        same_logs(ours[:12], one[:12])  # to the 11th step, with an evaluation
        return
    same_logs(ours, logs(done.folder, "two"))
    same_logs(ours[:5], one[:5])


@pytest.mark.parametrize("name", ["two", "fsdp"])
def test_the_saved_model_is_ordinary(done, name):
    model = BertForSequenceClassification.from_pretrained(done.folder / f"{name}-model")
    assert type(model) is BertForSequenceClassification
    assert summary(model).density == 0.25
    assert json.loads((done.folder / f"{name}-model" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]


def test_one_process_goes_on_where_two_stopped(done, worker):
    with pytest.warns(FinepruneWarning, match="written by 2 processes, continued by 1"):
        worker.trained(done.folder, "one", "two/checkpoint-6")
    same_logs(logs(done.folder, "one-resumed")[:12], logs(done.folder, "two")[:12])


def test_a_checkpoint_of_fsdp_needs_fsdp(done, worker):
    with pytest.raises(FinepruneError, match="written with FSDP, this run is without it"):
        worker.trained(done.folder, "no", "fsdp/checkpoint-6")


def engine(stage=None, version=None, fsdp=False, bf16=False):
    plugins = SimpleNamespace(zero_stage=stage), SimpleNamespace(fsdp_version=version)
    return SimpleNamespace(
        args=SimpleNamespace(bf16=bf16, fp16=False, fsdp=fsdp),
        is_deepspeed_enabled=stage is not None,
        is_fsdp_enabled=version is not None,
        accelerator=SimpleNamespace(
            state=SimpleNamespace(deepspeed_plugin=plugins[0], fsdp_plugin=plugins[1])
        ),
    )


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"stage": 3}, "ZeRO-3 takes"),
        ({"stage": 1, "bf16": True}, "casts the scores"),
        ({"version": 1, "fsdp": True}, "needs FSDP2"),
        ({"fsdp": True}, "on accelerators only"),
    ],
)
def test_engines_that_cannot_prune(settings, match):
    with pytest.raises(FinepruneError, match=match):
        processes.refuse_engines(engine(**settings))
    processes.refuse_engines(engine(stage=2))
    processes.refuse_engines(engine(version=2, fsdp=True))


@pytest.mark.parametrize("value", [0, -1, "often"])
def test_check_masks_takes_steps(worker, tmp_path, value):
    with pytest.raises(FinepruneError, match="check_masks="):
        worker.PruningTrainer(model=worker.model(), check_masks=value)


@pytest.mark.stress
@pytest.mark.skipif(not WHOLE, reason="every way to save, and accumulation: FINEPRUNE_STRESS=1")
def test_fsdp_in_every_way(tmp_path, worker):
    torch.manual_seed(0)
    outcomes = launch(FOLDER / "processes_worker.py", tmp_path, 2, "whole")
    failures = [f"{name}: {failure}" for name, both in outcomes.items() for failure in both if failure]
    assert not failures, "\n".join(failures)
    made = [name for name in outcomes if not name.endswith("resumed")]
    assert len(made) == 4
    for name in made:
        same_logs(logs(tmp_path, name), logs(tmp_path, f"{name}-resumed"))
