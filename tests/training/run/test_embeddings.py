"""A run of the kind embedding: from texts to a folder that sentence-transformers opens."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sentence_folders import sentence_folder, texts

from fineprune import summary
from fineprune.errors import FinepruneError
from fineprune.tasks.embeddings.encoder import as_sentence_encoder
from fineprune.tasks.embeddings.prediction import embed
from fineprune.tasks.opening import open_trained
from fineprune.training.distillation.losses import similarity_distance
from fineprune.training.run.calibration import Calibration, calibrate_folder
from fineprune.training.run.convert import compact_folder
from fineprune.training.run.data_files import load_recipe
from fineprune.training.run.evaluate import evaluate_run, evaluation_of
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

pytestmark = pytest.mark.filterwarnings("always::fineprune.errors.FinepruneWarning")  # of few, cut texts


@pytest.fixture(scope="module")
def ran(tmp_path_factory, pretrained):
    """`model`, `run`, `values` (of the recipe) and `results` of twelve steps."""
    folder = tmp_path_factory.mktemp("embeddings")
    model, written = sentence_folder(pretrained, folder / "dense"), texts(120)
    (folder / "t.txt").write_text("\n".join([*written, "", written[0]]))
    rows = [f"{written[at]}\t{written[at + 9]}" for at in range(12)]
    (folder / "sts.tsv").write_text(
        "\n".join(["sentence1\tsentence2\tscore", *(f"{row}\t{at % 5}" for at, row in enumerate(rows))])
    )
    (folder / "search.tsv").write_text("\n".join(["query\ttext", *rows]))
    values = {
        "model": model,
        "task": {
            "kind": "embedding",
            "train": str(folder / "t.txt"),
            "sts": str(folder / "sts.tsv"),
            "retrieval": str(folder / "search.tsv"),
        },
        "training": {
            "steps": 12,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "max_length": 8,
            "evaluate_every": 6,
        },
        "pruning": {"method": "movement", "density": 0.25},
        "distillation": {"alpha": 1, "similarity": 10, "hidden": 1},
    }
    results = run_recipe(Recipe.from_dict(values), folder / "run", progress=False)
    return SimpleNamespace(model=model, run=folder / "run", values=values, results=results)


def test_scores_stand_beside_those_of_the_dense_model(ran):
    scores, dense = ran.results["scores"], ran.results["dense"]["scores"]
    assert ran.results["metric"] == "spearman"
    assert ran.results["examples"] == {
        "train": 114, "validation": 6, "blank": 1, "repeated": 1, "sts": 12, "retrieval": 12
    }  # fmt: skip
    assert [dense[name] for name in ("spearman", "cosine", "neighbors")] == pytest.approx([1, 1, 1])
    assert {name for name in scores if not name.endswith("loss")} == set(dense)
    assert scores["loss"] == pytest.approx(1 - scores["cosine"], abs=1e-5)
    assert ran.results["density"] == pytest.approx(0.25, abs=0.01)
    assert any("training texts have more than 8 tokens" in text for text in ran.results["warnings"])
    lines = [json.loads(line) for line in (ran.run / "metrics.jsonl").read_text().splitlines()]
    assert {"distillation", "similarity", "hidden"} <= lines[0].keys()


def test_a_line_says_how_many_texts_come_before_the_first_step(ran, capsys):
    (recipe, _), tokenizer = load_recipe(ran.run), open_trained(ran.model, need_tokenizer=True).tokenizer
    evaluation_of(recipe, recipe.task.load(), tokenizer, progress=True)
    # 6 held out; texts 0 to 20 of the pairs (at, at + 9) for `sts`, and again for `retrieval`
    assert capsys.readouterr().err == "dense model: 48 texts to embed, then the first step\n"


def test_calibrate_cuts_such_a_run(ran, tmp_path):
    done = calibrate_folder(ran.run, tmp_path / "cut", Calibration(density=0.2, samples=16))
    assert done.scores.keys() >= {"spearman", "sts_spearman"}
    assert (tmp_path / "cut" / "modules.json").is_file()
    opened = open_trained(tmp_path / "cut", need_tokenizer=True)
    assert summary(opened.model).density == pytest.approx(0.2, abs=0.01)
    assert opened.model.sentence.modes == ("mean",)
    for method in ("kwon", "k_prune"):
        settings = Calibration(density=0.5, method=method, samples=16, units=True)
        with pytest.raises(FinepruneError, match=f"method='{method}': needs logits of classes"):
            calibrate_folder(ran.run, tmp_path / "no", settings)


def test_a_teacher_without_pooling_is_refused(ran, pretrained, tmp_path):
    values = ran.values | {"distillation": {"alpha": 1, "teacher": pretrained}}
    with pytest.raises(FinepruneError, match=r"has no modules\.json"):
        run_recipe(Recipe.from_dict(values), tmp_path / "run", progress=False)


def test_the_model_opens_with_sentence_transformers(ran, tmp_path):
    from sentence_transformers import SentenceTransformer

    opened = SentenceTransformer(str(ran.run / "model"), device="cpu")
    assert (opened.prompts["query"], opened.max_seq_length) == ("a ", 12)
    theirs = torch.tensor(opened.encode(["good film", "bad"]))
    model, tokenizer, _ = open_trained(ran.run)
    with torch.no_grad():
        ours = model(**tokenizer(["good film", "bad"], padding=True, return_tensors="pt"))["logits"]
    assert torch.allclose(ours, theirs, atol=1e-6)
    compact_folder(ran.run, tmp_path / "small")
    small = torch.tensor(
        SentenceTransformer(str(tmp_path / "small"), device="cpu").encode(["good film", "bad"])
    )
    assert torch.allclose(small, theirs, atol=1e-6)


def test_the_run_and_its_compact_copy_are_scored_alike(ran, tmp_path):
    compact_folder(ran.run, tmp_path / "small")
    for folder in (None, tmp_path / "small"):
        assert evaluate_run(ran.run, model_folder=folder) == pytest.approx(ran.results["scores"], abs=1e-5)


def test_the_dense_model_teaches_unless_another_is_named(ran):
    values = ran.values | {"distillation": None}
    assert Recipe.from_dict(values).distillation.teacher == ran.model
    assert Recipe.from_dict(values | {"distillation": {"teacher": "other"}}).distillation.teacher == "other"


def test_another_model_in_a_recipe_that_a_run_wrote_is_taught_by_itself(ran):
    file = ran.run / "recipe.yaml"
    assert Recipe.load(file, ["pruning.density=0.5"]).distillation.teacher == ran.model
    assert Recipe.load(file, ["model.name=other"]).distillation.teacher == "other"
    assert (
        Recipe.load(file, ["model=other", f"distillation.teacher={ran.model}"]).distillation.teacher
        == ran.model
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dense": {}}, "dense: there are no labels to fine-tune on"),
        ({"distillation": {"task": 1}}, "distillation.task=1.0: does nothing, since there are no labels"),
        ({"distillation": {"temperature": 4}}, "distillation.temperature=4.0: does nothing"),
    ],
)
def test_settings_of_labels_are_refused(ran, section, message):
    with pytest.raises(FinepruneError, match=message):
        Recipe.from_dict(ran.values | section)


def test_a_teacher_of_another_size_is_refused(ran, save_body, tmp_path, refused_run):
    wide = save_body(hidden_size=16)
    sentence_folder(wide, tmp_path / "wide", width=16)
    recipe = Recipe.from_dict(ran.values | {"distillation": {"teacher": str(tmp_path / "wide")}})
    refused_run(recipe, tmp_path / "run", "its embeddings have 16 numbers, the model's 8")


def test_a_transformer_in_a_folder_of_its_own_is_refused_with_the_way_out(ran, tmp_path, refused_run):
    place = tmp_path / "inside"
    shutil.copytree(ran.model, place)
    (place / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (place / name).rename(place / "0_Transformer" / name)
    modules = json.loads((place / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (place / "modules.json").write_text(json.dumps(modules))
    told = f"{place}: its transformer is in 0_Transformer; fineprune compact {place} OUT --format dense"
    refused_run(Recipe.from_dict(ran.values | {"model": str(place)}), tmp_path / "run", told)


def test_a_model_without_pooling_is_refused(ran, pretrained, tmp_path, refused_run):
    recipe = Recipe.from_dict(ran.values | {"model": pretrained})
    refused_run(recipe, tmp_path / "run", "has no modules.json, so nothing says how its tokens become")


def test_other_modules_and_settings_that_change_texts_are_refused(ran, pretrained, tmp_path):
    model = open_trained(pretrained).model
    odd = tmp_path / "odd"
    sentence_folder(pretrained, odd, do_lower_case=True)
    with pytest.raises(FinepruneError, match="do_lower_case is True, and texts are read as they are"):
        as_sentence_encoder(model, odd)
    modules = json.loads((odd / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (odd / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(FinepruneError, match="has the modules Transformer, Pooling, Dense"):
        as_sentence_encoder(model, odd)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_is_that_of_sentence_transformers(pretrained, tmp_path, mode, normalize):
    from sentence_transformers import SentenceTransformer

    place = sentence_folder(pretrained, tmp_path / "model", mode, normalize)
    model, tokenizer, _ = open_trained(place)
    written = ["good film", "a very bad film"]
    with torch.no_grad():
        ours = model(**tokenizer(written, padding=True, return_tensors="pt"))["logits"]
    theirs = SentenceTransformer(place, device="cpu").encode(written)
    assert torch.allclose(ours, torch.tensor(theirs), atol=1e-5)


def test_a_model_that_cuts_its_vectors_learns_and_answers_the_first_numbers(pretrained, tmp_path):
    from sentence_transformers import SentenceTransformer

    place = Path(sentence_folder(pretrained, tmp_path / "model"))
    (place / "config_sentence_transformers.json").write_text('{"truncate_dim": 3}')
    model, tokenizer, _ = open_trained(place, need_tokenizer=True)
    written = ["good film", "a very bad film"]
    ours = embed(model, tokenizer, written)
    assert (ours.shape, model.sentence.width(model)) == ((2, 3), 3)
    theirs = SentenceTransformer(str(place), device="cpu").encode(written)
    assert torch.allclose(ours, torch.tensor(theirs), atol=1e-5)
    (place / "config_sentence_transformers.json").write_text('{"truncate_dim": "3"}')
    with pytest.raises(FinepruneError, match=r"truncate_dim in .* is '3', expected a whole number"):
        open_trained(place)


def test_similarities_are_compared_without_the_diagonal():
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert float(similarity_distance(student, teacher)) == 1.0  # cosines 0 and 1
    assert float(similarity_distance(student[:1], teacher[:1])) == 0.0
