"""A run or model folder, cut without labels, as a folder of its own."""

import json
import shlex

import pytest
from support import call

from fineprune import FinepruneError, load, summary
from fineprune.training.run.calibration import Calibration, _train_on, calibrate_folder
from fineprune.training.run.convert import compact_folder
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens for matrices:fineprune.FinepruneWarning")


@pytest.fixture
def dense(files, tmp_path):
    """The folder of a short dense run."""
    recipe = files.recipe(pruning=None, training={"steps": 4})
    run_recipe(recipe, tmp_path / "dense", progress=False)
    return tmp_path / "dense"


def test_a_run_is_cut_by_its_training_data_and_trains_on(dense, tmp_path, capsys):
    out = tmp_path / "half"
    assert call("calibrate", dense, "--out", out, "--samples", 20) == 0
    text = capsys.readouterr().out
    assert summary(load(out)).density == 0.5
    about = json.loads((out / "calibration.json").read_text())
    results = json.loads((dense / "results.json").read_text())
    assert about["dense_scores"] == results["scores"]
    assert f"accuracy {results['score']:.2%} before, {about['scores']['accuracy']:.2%} after" in text
    assert about["command"] == "fineprune calibrate dense --out half --method alps --density 0.5 --samples 20"
    assert compact_folder(out, tmp_path / "small").density == 0.5
    assert json.loads((tmp_path / "small/fineprune.json").read_text())["scores"] == about["scores"]
    (line,) = (line for line in text.splitlines() if line.startswith("train it on: fineprune run "))
    words = shlex.split(line.removeprefix("train it on: fineprune run "))
    loaded = Recipe.load(words[0], words[1 : words.index("--out")])
    assert (loaded.model.name, loaded.pruning.method) == (str(out), "keep_zeros")
    assert loaded.distillation.teacher == str(dense)
    assert run_recipe(loaded, tmp_path / "on", progress=False)["density"] == 0.5


@pytest.mark.parametrize("units", [False, True])
def test_the_command_to_train_on_is_that_of_one_density(files, tmp_path, units):
    recipe = files.recipe(pruning={"method": "magnitude", "density": [0.5, 0.25]})
    run, out = tmp_path / "my rün", tmp_path / "it's out"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    words = shlex.split(_train_on(run, out, Calibration(units=units), recipe))
    loaded = Recipe.load(words[2], words[3 : words.index("--out")])
    assert loaded.earlier_densities == ()
    assert (loaded.model.name, loaded.distillation.teacher) == (str(out), str(run))
    assert (loaded.pruning is None) is units


def test_a_model_folder_is_cut_by_texts(dense, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("good film\na very bad film\nb\n")
    assert (
        call("calibrate", dense / "model", "--texts", texts, "--method", "wanda", "--density", 0.25, "--json")
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == str(dense / "model-calibrated")
    assert said["cut"]["density"] == 0.25
    assert said["cut"]["tokens"] == 4 + 6 + 3  # with [CLS] and [SEP]
    assert (said["scores"], said["train_on"]) == (None, None)


def test_heads_and_neurons_are_removed(dense, tmp_path, capsys):
    assert call("calibrate", dense, "--out", tmp_path / "half", "--units") == 0
    text = capsys.readouterr().out
    assert "bert.encoder.layer.1.attention  1 of 2 heads" in text
    assert "pruning=null" in text
    layer = load(tmp_path / "half").bert.encoder.layer[0]
    assert tuple(layer.intermediate.dense.weight.shape) == (8, 8)
    assert tuple(layer.attention.output.dense.weight.shape) == (8, 4)


def test_refused(dense, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("good\tfilm\nbad\n")
    for settings, message in [
        (Calibration(samples=0), "samples=0: at least one text"),
        (Calibration(), "no run, so without training data; give texts"),
        (Calibration(texts=texts), "every line must be one text, or two"),
    ]:
        with pytest.raises(FinepruneError, match=message):
            calibrate_folder(dense / "model", tmp_path / "out", settings)
        assert not (tmp_path / "out").exists()
    with pytest.raises(FinepruneError, match="is the model that is read, and would be replaced"):
        calibrate_folder(dense, dense / "model", Calibration())
    (dense / "results.json").unlink()
    with pytest.raises(FinepruneError, match="the run is not finished"):
        calibrate_folder(dense, tmp_path / "out", Calibration())
