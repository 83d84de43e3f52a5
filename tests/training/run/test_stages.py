"""A recipe of two stages: a dense fine-tuning, then pruning from there with that teacher."""

import gc
import json
import weakref

import pytest
from training.run.test_train_resumed import killed

from fineprune import FinepruneError
from fineprune.training.run import train
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.recipe_check import check_recipe, summary_lines
from fineprune.training.run.train import run_recipe


@pytest.fixture
def staged(files):
    """`staged(**sections)`: a recipe of 6 dense steps, and 12 of pruning, the last 5 at the final density."""

    def make(**sections):
        recipe = files.recipe(pruning={"warmup": 1, "cooldown": 5})
        values = recipe.to_dict() | {
            "dense": {"steps": 6, "learning_rate": 3e-3, "evaluate_every": 3},
            "distillation": {"alpha": 2.7, "task": 0.3},
        }
        return Recipe.from_dict(values | sections)

    return make


def test_a_run_of_two_stages_is_a_dense_run_and_one_from_there(staged, tmp_path, assert_same_run):
    recipe, out = staged(), tmp_path / "both"
    results = run_recipe(recipe, out, progress=False)
    dense = run_recipe(recipe.dense_stage, tmp_path / "first", progress=False)
    second = recipe.after_dense(str(out / "dense"))
    assert (second.model.name, second.distillation.teacher) == (str(out / "dense"), str(out / "dense"))
    alone = run_recipe(second, tmp_path / "second", progress=False)
    assert_same_run(tmp_path / "first", out / "dense")
    weights = [folder / "model" / "model.safetensors" for folder in (out, tmp_path / "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    told = results["dense"]
    assert (told["score"], told["steps"]) == (dense["score"], 6)
    assert told["share"] == results["score"] / dense["score"]
    assert (results["score"], results["teacher_score"]) == (alone["score"], dense["score"])
    assert alone["dense"] is None
    assert Recipe.load(out / "recipe.yaml") == recipe
    assert results["recipe"] == recipe.to_dict()


def test_the_dense_stage_has_the_batches_of_the_other_and_rates_of_its_own(staged):
    dense = staged().dense
    assert (dense.batch_size, dense.max_length, dense.seed) == (8, 16, 5)
    assert (dense.learning_rate, dense.warmup, dense.evaluate_every) == (3e-3, 0.1, 3)
    other = staged(dense={"steps": 2, "seed": 1}).dense
    assert (other.seed, other.learning_rate) == (1, None)


def test_a_model_that_is_fine_tuned_already(staged, tmp_path):
    """`dense: FOLDER` is a dense stage of that model that trains nothing."""
    values = staged().to_dict()
    tuned = Recipe.from_dict(
        values | {"model": "tuned", "dense": {"steps": 1, "learning_rate": 0, "evaluate_every": 2}}
    )
    assert tuned.is_tuned
    assert not staged().is_tuned
    for model in ({"name": "elsewhere", "layers": 2}, "elsewhere", {"layers": 2}):
        assert Recipe.from_dict(values | {"model": model, "dense": "tuned"}) == tuned
    without = {key: values[key] for key in values if key != "model"}
    assert Recipe.from_dict(without | {"dense": "tuned"}) == tuned
    file = tmp_path / "recipe.yaml"
    file.write_text(staged().to_yaml())
    assert Recipe.load(file, ["dense=tuned"]) == tuned
    assert Recipe.load(file, ["dense=tuned", "model.attention=eager"]).model.attention == "eager"
    for setting in ("model=other", "model.name=other", "model.layers=2"):
        with pytest.raises(FinepruneError, match=f"^{setting}: with dense=tuned that is the model, as it is"):
            Recipe.load(file, [setting, "dense=tuned"])
    assert Recipe.load(file, ["model.layers=2", "dense={}"]).model.layers == 2
    with pytest.raises(FinepruneError, match="dense is 'tuned', which has no settings in it"):
        Recipe.load(file, ["dense=tuned", "dense.steps=3"])


def test_a_run_from_a_fine_tuned_model_is_the_run_after_its_dense_stage(staged, tmp_path, capfd):
    both, out = tmp_path / "both", tmp_path / "out"
    expected = run_recipe(staged(), both, progress=False)
    capfd.readouterr()
    results = run_recipe(staged(dense=str(both / "dense")), out, progress=False)
    assert "learning_rate" not in capfd.readouterr().err  # a rate of 0 is no mistake here
    for part in ("dense/model", "model"):
        weights = [folder / part / "model.safetensors" for folder in (both, out)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    told = [found["dense"] | {"steps": 0, "seconds": 0} for found in (expected, results)]
    assert told[0] == told[1]
    assert results["teacher_score"] == expected["teacher_score"]
    assert (
        list(summary_lines(check_recipe(staged(dense=str(both / "dense")))))[2]
        == "dense     the model as it is"
    )


def test_what_is_no_fine_tuned_dense_model_is_refused(staged, tmp_path, pretrained):
    with pytest.raises(FinepruneError, match=f"^dense={pretrained}: its head is not of this task"):
        run_recipe(staged(dense=pretrained), tmp_path / "out", progress=False)
    with pytest.raises(FinepruneError, match=f"^dense={pretrained}: its head is not of this task"):
        check_recipe(staged(dense=pretrained))
    pruned = tmp_path / "pruned"
    run_recipe(staged(), pruned, progress=False)
    told = f"^dense={pruned}: 25.0% of its weights are there: it was pruned; name the dense model, or"
    with pytest.raises(FinepruneError, match=told):
        run_recipe(staged(dense=str(pruned)), tmp_path / "further", progress=False)


@pytest.mark.parametrize(
    ("where", "stage"),
    [
        ("step:4", "dense"),
        ("write:results.json", "dense"),
        ("step:9", "second"),
        ("seal:checkpoint-12", "second"),
    ],
)
def test_a_kill_in_either_stage_costs_nothing(staged, tmp_path, where, stage, assert_same_run):
    recipe = staged()
    run_recipe(recipe, tmp_path / "whole", progress=False)
    out = tmp_path / "killed"
    killed(recipe, out, where)
    assert (out / "dense" / "results.json").exists() == (stage == "second")
    assert not (out / "results.json").exists()
    with pytest.raises(FinepruneError, match="holds another run; continue it with --resume"):
        run_recipe(recipe, out, progress=False)
    run_recipe(recipe, out, resume=True, progress=False)
    for part in ("dense/model", "model"):
        whole, continued = (folder / part / "model.safetensors" for folder in (tmp_path / "whole", out))
        assert whole.read_bytes() == continued.read_bytes()
    scores = [
        json.loads((folder / "results.json").read_text())["dense"] for folder in (tmp_path / "whole", out)
    ]
    assert scores[0]["score"] == scores[1]["score"]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"pruning": {"method": "movement", "density": 0.2, "targets": ["nowhere"]}}, "nowhere"),
        ({"distillation": {"teacher": "not/there"}}, "not/there"),
        ({"pruning": {"method": "movement", "density": 0.2, "warmup": 9, "cooldown": 9}}, "cooldown"),
        ({"dense": {"steps": 6, "batch_size": 8, "max_length": 4096}}, "dense stage: training.max_length"),
    ],
)
def test_what_cannot_work_is_refused_before_a_stage_is_trained(staged, tmp_path, sections, told):
    out = tmp_path / "out"
    with pytest.raises(FinepruneError, match=told):
        run_recipe(staged(**sections), out, progress=False)
    assert not list(out.rglob("checkpoint-*"))


def test_a_dense_stage_that_fails_says_so(staged, tmp_path):
    with pytest.raises(FinepruneError, match=r"^dense stage: .*the loss is nan or infinite"):
        run_recipe(staged(dense={"steps": 6, "learning_rate": 1e30}), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("dense", "told"),
    [
        ({"steps": 0}, r"^dense.steps=0: must be a whole number"),
        ({"stpes": 5}, r"^dense: unknown setting 'stpes'"),
        ({"steps": 5, "epochs": 1}, r"^dense: give either steps or epochs"),
        (3, r"^dense"),
        ("", r"^dense='': must be a run folder, a model folder, a hub name or settings"),
    ],
)
def test_wrong_settings_of_the_dense_stage(staged, dense, told):
    with pytest.raises(FinepruneError, match=told):
        staged(dense=dense)


def test_a_teacher_may_be_left_out_only_where_a_dense_stage_is_it(files):
    with pytest.raises(FinepruneError, match=r"distillation: teacher is missing .* no section dense"):
        Recipe.from_dict(files.recipe().to_dict() | {"distillation": {"alpha": 0.5}})


def test_two_stages_without_pruning_train_on(staged, tmp_path):
    results = run_recipe(staged(pruning=None), tmp_path / "out", progress=False)
    assert (results["density"], results["steps"], results["dense"]["steps"]) == (1.0, 12, 6)


def test_a_stage_begins_without_the_models_of_those_before(staged, tmp_path, monkeypatch):
    build, made, alive = train.build_model, [], []

    def watched(*args):
        alive.append(sum(model() is not None for model in made))
        model, tokenizer = build(*args)
        made.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(train, "build_model", watched)
    gc.collect()
    gc.disable()  # else it depends on when Python collects
    try:
        run_recipe(staged(), tmp_path / "run", progress=False)
    finally:
        gc.enable()
    assert alive == [0, 0, 0]  # the last stage to see that it can run, the dense one, the last
