"""The command line with recipes of the package, tasks by name, and models that find entities."""

import json
from pathlib import Path

import pytest
from support import call

from fineprune.training.run.recipe_file import dump_yaml, read_yaml

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ann", "smith", "rome", "in", "is", "good", "bad"]
TASK = """
model: {model}
task: {{kind: token_classification, train: {train}, validation: {train}}}
training: {{steps: 60, batch_size: 8, learning_rate: 1e-2, max_length: 16, evaluate_every: 60}}
pruning: {{method: movement, density: 0.5}}
"""


@pytest.fixture(scope="module")
def place(save_body) -> Path:
    """A folder with `tiny`, a pre-trained model, sentences with entities, and a folder of SST-2's shape."""
    model = Path(save_body(WORDS, hidden_size=16, num_hidden_layers=1))
    folder = model.parent
    tags = {"ann": "B-PER", "smith": "I-PER", "rome": "B-LOC"}
    sentences = ["ann smith is in rome", "rome is good", "ann is bad", "bad is in rome"] * 8
    lines = ["".join(f"{word} {tags.get(word, 'O')}\n" for word in text.split()) for text in sentences]
    (folder / "train.conll").write_text("\n".join(lines), encoding="utf-8")
    recipe = TASK.format(model=model, train=folder / "train.conll")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "sst2").mkdir()
    for name, who in (("train", "ann"), ("dev", "smith")):
        rows = "".join(f"{who} is {('bad', 'good')[i % 2]}\t{i % 2}\n" for i in range(32))
        (folder / "sst2" / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tagger(place) -> Path:
    assert call("run", place / "recipe.yaml", "--out", place / "tagger") == 0
    return place / "tagger"


def test_recipes_are_listed_and_printed(capsys):
    assert call("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16
    assert lines[2].startswith("paper-mnli   MNLI on BERT-base as in the paper")
    assert call("recipes", "small-sst2") == 0
    assert "data_dir: ../shared/data/sst2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipes", "small-sst"], "did you mean small-sst2"),
        (["recipes", "nowhere.yaml"], "not the name of a recipe"),
        (["run", "small-sst"], "did you mean small-sst2"),
        (
            ["run", "small-sst2", "task.data_dir=nowhere"],
            "data_dir is 'nowhere', which is not a folder; it",
        ),
        (["run", "small-sst2", "task=sst3"], "did you mean sst2"),
    ],
)
def test_bad_names_are_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_recipe_is_checked_before_it_runs(place, capsys):
    assert call("recipe", "check", place / "recipe.yaml", "training.warmup=3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"model     {place / 'tiny'}"
    assert lines[2] == "training  60 steps, batch 8, learning rate 0.01"
    assert call("recipe", "check", place / "recipe.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pruning"]["density"] == 0.5
    assert (
        call("recipe", "check", "small-sst2", f"task.data_dir={place / 'sst2'}", f"model={place / 'tiny'}")
        == 2
    )
    assert "training.max_length=64: " in capsys.readouterr().err


def test_the_schema_is_printed(capsys):
    assert call("recipe", "schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "fineprune recipe"


SECTIONS = ("model", "task", "training", "pruning", "distillation", "dense", "refine", "methods")


@pytest.mark.parametrize("command", [["run"], ["recipe", "check"]])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not a regular file"),
        ("", "a recipe has the sections model, task"),
        ("model: [", "not YAML"),
        ("sections: {}", "recipe: unknown setting 'sections'"),
    ],
)
def test_a_wrong_file_is_one_line(command, content, said, capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    if content is None:
        recipe.mkdir()
    else:
        recipe.write_text(content)
    assert call(*command, recipe) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["run"], ["recipe", "check"]])
@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_of_a_section_is_one_line(place, command, section, capsys, tmp_path):
    valid = read_yaml(place / "recipe.yaml", "recipe")
    (tmp_path / "recipe.yaml").write_text(dump_yaml(valid | {section: {"nmae": 1}}))
    assert call(*command, tmp_path / "recipe.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fineprune: {section}: unknown setting 'nmae'; ")
    assert error.count("\n") == 1


def test_a_dry_run_prints_an_estimate_and_writes_nothing(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("run", place / "recipe.yaml", "--dry-run", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("from 10 steps on this machine")
    assert not any(tmp_path.iterdir())
    assert call("run", place / "recipe.yaml", "--dry-run", "--resume") == 2
    assert call("run", place / "recipe.yaml", "--json") == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_recipe_of_the_package_runs_by_name(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["training.steps=6", "training.batch_size=8", "training.max_length=16"]
    model = [f"model={place / 'tiny'}", f"task.data_dir={place / 'sst2'}"]
    assert call("run", "small-sst2", *model, *short) == 0
    assert "accuracy" in capsys.readouterr().out
    results = json.loads((tmp_path / "runs" / "small-sst2" / "results.json").read_text())
    assert results["recipe"]["task"]["train"] == str(place / "sst2" / "train.tsv")
    assert results["recipe"]["task"]["labels"] == ["negative", "positive"]
    assert results["examples"] == {"train": 32, "validation": 32}
    assert call("run", "small-sst2", *model, *short, "--resume") == 0


def test_a_tagger_from_recipe_to_entities(place, tagger, capsys):
    capsys.readouterr()
    results = json.loads((tagger / "results.json").read_text())
    assert results["metric"] == "f1"
    assert set(results["scores"]) == {"loss", "f1", "precision", "recall", "accuracy"}
    assert results["score"] == results["scores"]["f1"] == 1.0
    assert results["density"] == 0.5

    assert call("evaluate", tagger, "--json") == 0
    assert json.loads(capsys.readouterr().out)["f1"] == 1.0
    assert call("evaluate", tagger, "--data", place / "train.conll") == 0
    assert "f1         1.0000" in capsys.readouterr().out

    assert call("predict", tagger, "ann smith  is in rome", "rome is good") == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[:1] + line[2:] for line in lines] == [
        ["PER", "0-9", "ann smith"],
        ["LOC", "17-21", "rome"],
        [""],
        ["LOC", "0-4", "rome"],
    ]
    assert call("predict", tagger, "ann is bad", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == "ann is bad"
    (entity,) = row["entities"]
    assert entity.pop("score") > 0.5
    assert entity == {"label": "PER", "text": "ann", "start": 0, "end": 3}
    assert call("predict", tagger, "ann", "--pair", "rome") == 2
    assert "in single texts" in capsys.readouterr().err


def test_unknown_tags_are_one_line_with_their_place(place, tagger, capsys, tmp_path):
    (tmp_path / "dev.conll").write_text("ann B-PER\nrome B-ORG\n", encoding="utf-8")
    assert call("evaluate", tagger, "--data", tmp_path / "dev.conll") == 2
    assert "dev.conll, line 2: tag 'B-ORG' of 'rome' is not known" in capsys.readouterr().err
    changed = f"task.validation={tmp_path / 'dev.conll'}"
    assert call("run", place / "recipe.yaml", changed, "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
