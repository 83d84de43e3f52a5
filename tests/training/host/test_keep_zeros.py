"""`method="keep_zeros"` in the trainer, in recipes and in studies: another task on a model that is sparse."""

import copy
import itertools
import json

import pytest
import torch

from fineprune import FinepruneError, PruningConfig, finalize, save_compact, summary
from fineprune.checkpoint.loading import open_model
from fineprune.pruning.targets import find_targets
from fineprune.study.grid import Study
from fineprune.study.rows import collect
from fineprune.study.study_folder import read_folder
from fineprune.study.tables import as_text, tables
from fineprune.training.run.train import run_recipe

KEEP_ZEROS = PruningConfig("keep_zeros")


def zeros(model):
    return {name: module.weight == 0 for name, module in find_targets(model).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def sparse(make_model):
    """Half of the weights are zeros, drawn at random."""
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in find_targets(model).values():
            module.weight[torch.rand(module.weight.shape, generator=generator) < 0.5] = 0
    return model


# -- trainer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_a_trainer_holds_the_zeros_at_every_step(make_trainer, sparse, every, history, optim):
    held, before = zeros(sparse), summary(sparse).kept
    trainer = make_trainer(KEEP_ZEROS, given={"model": sparse}, optim=optim, weight_decay=0.1)
    trainer.add_callback(every(lambda step: seen.append(same(zeros(trainer.model), held))))
    seen: list[bool] = []
    trainer.train()
    assert seen == [True] * 12
    lines = [line for line in history(trainer) if "loss" in line]
    assert {line["density"] for line in lines} == {before / summary(sparse).total}
    assert not any("threshold" in line or "lambda" in line for line in lines)
    assert summary(finalize(trainer.model)).kept == before
    assert same(zeros(trainer.model), held)


def test_a_resumed_run_is_the_uninterrupted_run(make_trainer, sparse, assert_same, tensors, history):
    whole = make_trainer(KEEP_ZEROS, given={"model": copy.deepcopy(sparse)})
    whole.train()
    resumed = make_trainer(KEEP_ZEROS, "other", given={"model": sparse})
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert_same(tensors(whole), tensors(resumed))
    assert history(whole) == history(resumed)


def test_the_best_state_may_be_an_early_one(make_trainer, sparse):
    falling = itertools.count(0, -1)
    given = {"model": sparse, "compute_metrics": lambda _: {"falling": next(falling)}}
    arguments = {"load_best_model_at_end": True, "metric_for_best_model": "falling", "save_steps": 2}
    trainer = make_trainer(KEEP_ZEROS, given=given, greater_is_better=True, **arguments)
    trainer.train()
    assert trainer.state.best_global_step == 2  # the first evaluation: every state is of the final density


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_trainer_of_lora_saves_resumes_and_merges(make_trainer, sparse, history, tmp_path):
    import peft

    def adapted():
        torch.manual_seed(0)
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "dense"])
        return peft.get_peft_model(copy.deepcopy(sparse), config)

    whole = make_trainer(KEEP_ZEROS, given={"model": adapted()})
    whole.train()
    resumed = make_trainer(KEEP_ZEROS, "other", given={"model": adapted()})
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert history(whole) == history(resumed)
    batch = whole.data_collator(list(whole.eval_dataset))
    with torch.no_grad():
        expected = whole.model.eval()(**batch).logits
        merged = finalize(whole.model).merge_and_unload()
        assert torch.allclose(merged(**batch).logits, expected, atol=1e-5)
    assert same(zeros(merged), zeros(sparse))
    made = save_compact(merged, tmp_path / "small")
    assert made.density == summary(sparse).density


# -- recipes ----------------------------------------------------------------------------------


@pytest.fixture
def compact(finished, tmp_path):
    model, tokenizer, _ = open_model(finished)
    save_compact(model, tmp_path / "small", tokenizer)
    return tmp_path / "small"


@pytest.mark.parametrize("form", ["run", "compact"])
def test_another_task_on_a_finished_run(files, finished, compact, tmp_path, form):
    start = {"run": finished, "compact": compact}[form]
    trained = open_model(finished).model
    recipe = files.recipe(
        model=str(start), pruning=None, training={"learning_rate": 1e-2, "weight_decay": 0.1}
    )
    recipe = type(recipe).from_dict(recipe.to_dict() | {"pruning": {"method": "keep_zeros"}})
    results = run_recipe(recipe, tmp_path / "next", progress=False)
    model = open_model(tmp_path / "next").model
    assert same(zeros(model), zeros(trained))
    assert results["density"] == summary(trained).density == pytest.approx(0.25, abs=0.02)
    assert not any(
        torch.equal(module.weight, trained.get_submodule(name).weight)
        for name, module in find_targets(model).items()
    )
    config = json.loads((tmp_path / "next" / "model" / "config.json").read_text())
    assert "quantization_config" not in config  # an ordinary model, whatever it started from


def test_a_model_without_zeros_is_one_line_and_leaves_nothing(files, tmp_path, refused_run):
    recipe = files.recipe(pruning=None)
    recipe = type(recipe).from_dict(recipe.to_dict() | {"pruning": {"method": "keep_zeros"}})
    refused_run(recipe, tmp_path / "run", "none of the 12 matrices has a zero", "start from a pruned model")
    assert not (tmp_path / "run").exists()


# -- studies ----------------------------------------------------------------------------------


def study_of(recipe, path, **axes):
    path.write_text(recipe.to_yaml())
    return Study.from_dict({"name": "held", "recipes": {"a": str(path)}, "axes": axes})


def test_a_study_has_one_run_of_it_for_all_densities(files, finished, tmp_path):
    recipe = files.recipe(model=str(finished), pruning=None)
    axes = {
        "method": ["dense", "magnitude", "keep_zeros"],
        "density": [0.2, 0.1],
        "scope": ["local", "global"],
    }
    study = study_of(recipe, tmp_path / "a.yaml", **axes)
    assert [run.name for run in study.runs(tmp_path)] == [
        *("a-dense-s0", "a-magnitude-0.2-s0", "a-magnitude-0.2-global-s0"),
        *("a-magnitude-0.1-s0", "a-magnitude-0.1-global-s0", "a-keep_zeros-s0"),
    ]
    assert (
        study_of(recipe, tmp_path / "a.yaml", method="keep_zeros").runs(tmp_path)[0].name == "a-keep_zeros-s0"
    )
    with pytest.raises(FinepruneError, match="density is missing; magnitude needs it"):
        study_of(recipe, tmp_path / "a.yaml", method=["keep_zeros", "magnitude"]).cells()


def test_what_a_study_says_of_it(files, finished, tmp_path):
    recipe = files.recipe(model=str(finished), pruning=None)
    (run,) = study_of(recipe, tmp_path / "a.yaml", method="keep_zeros").runs(tmp_path)
    results = run_recipe(run.recipe, tmp_path / "out" / run.name, progress=False)
    (table,) = tables(collect(tmp_path / "out"))
    assert table.lines[0][:2] == ("–", "keep_zeros")
    assert f"{results['density']:.1%}" in table.lines[0]
    assert "keep_zeros" in as_text([table])
    (folder,) = read_folder(tmp_path / "out")
    assert folder.cell == run.cell
    assert folder.notes == []
