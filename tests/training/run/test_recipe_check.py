"""A recipe is checked before anything is loaded: files, model, teacher, plan, and a summary."""

import json

import pytest

from fineprune import FinepruneError
from fineprune.training.run.recipe_check import check_recipe, summary_lines


def test_the_summary_of_a_run_of_one_stage(files, pretrained):
    checked = check_recipe(files.recipe(training={"warmup": 3}))
    assert checked["model"] == pretrained
    assert checked["data"] == [str(files.train), str(files.validation)]
    assert checked["stages"] == [
        {
            "stage": "training",
            "length": "12 steps",
            "steps": 12,
            "epochs": None,
            "batch_size": 8,
            "learning_rate": 1e-2,
        }
    ]
    pruning = {"method": "movement", "density": 0.25, "earlier_densities": [], "structure": "element"}
    assert checked["pruning"] == pruning
    assert (checked["teacher"], checked["notes"]) == (None, [])
    (warning,) = checked["warnings"]  # hidden size 8 has no usual rate
    assert warning.startswith("pruning.warmup=0.1: the model's head is new, and still random when pruning")


def test_stages_whose_steps_follow_from_the_data(files):
    recipe = files.recipe(
        dense={"epochs": 2},
        training={"steps": None, "learning_rate": None, "accumulation": 2},
        distillation={},
        pruning={"structure": {"attention": "head"}},
        refine={"steps": 5},
    )
    checked = check_recipe(recipe)
    lines = list(summary_lines(checked))
    assert lines[1] == f"data      {files.train}, {files.validation} (classification)"
    assert lines[2:] == [
        "dense     2 epochs, batch 16, learning rate 0.0002",  # of the narrowest width that is known
        "training  300 to 3,000 steps, by the number of examples, batch 16, learning rate 0.001",
        "refine    5 steps, batch 16, learning rate 0.0002",
        "pruning   movement, density 25.0%, structure {'attention': 'head'}",
        "teacher   the dense stage",
    ]


def test_a_fixed_penalty_decides_the_density(files):
    checked = check_recipe(files.recipe(pruning={"method": "soft_movement", "penalty": 1.0}))
    assert checked["pruning"]["density"] is None
    assert "pruning   soft_movement, density as its penalty decides, structure element" in summary_lines(
        checked
    )


def test_a_table_of_times_that_cannot_be_read(files, tmp_path):
    table = tmp_path / "table.json"
    pruning = {
        "structure": {"attention": "head", "feed_forward": "neuron"},
        **{"scope": "global", "budget": "latency", "latency_table": str(table)},
    }
    told = rf"^latency_table: {table}: cannot be read \(.*; fineprune bench DIR --table writes one$"
    with pytest.raises(FinepruneError, match=told):
        check_recipe(files.recipe(pruning=pruning))
    table.write_text("{")
    with pytest.raises(FinepruneError, match=told):
        check_recipe(files.recipe(pruning=pruning))
    table.write_text("{}")
    assert check_recipe(files.recipe(pruning=pruning))["pruning"]["method"] == "movement"


def test_a_model_that_is_not_here_is_noted(files):
    checked = check_recipe(files.recipe(model="some/model", training={"learning_rate": None}))
    assert checked["notes"] == [
        "some/model: no such folder, and not in the cache of the hub; a run downloads it"
    ]
    assert checked["stages"][0]["learning_rate"] is None
    assert any("learning rate by the model's width" in line for line in summary_lines(checked))


def test_only_the_first_stage_begins_with_a_new_head(files):
    recipe = files.recipe(dense={"steps": 6, "learning_rate": 1e-3})
    assert check_recipe(recipe)["warnings"] == []


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"task": {"train": "nowhere.tsv"}}, "nowhere.tsv: no such file"),
        ({"task": {"more": {"hard": "nowhere.tsv"}}}, "nowhere.tsv: no such file"),
        ({"task": {"label": "lable"}}, "lable"),
        ({"model": "/no/such/model"}, "/no/such/model: no such folder"),
        ({"model": "a b"}, "a b: neither a folder nor a name on the hub"),
        ({"distillation": {"teacher": "/no/such/model"}}, "teacher /no/such/model: no such folder"),
        ({"training": {"max_length": 64}}, "training.max_length=64: "),
        ({"dense": {"steps": 3, "max_length": 64}}, "dense.max_length=64: "),
        ({"training": {"warmup": 12}}, "training.warmup=12: the run has 12 steps"),
        ({"dense": {"steps": 3, "warmup": 4}}, "dense.warmup=4: the run has 3 steps"),
        ({"training": {"schedule": "cycles", "cycles": 13}}, "training.cycles=13: the run has 12 steps"),
        ({"pruning": {"warmup": 8, "cooldown": 4}}, "at least 13 steps"),
    ],
)
def test_what_cannot_work_is_refused(files, sections, part):
    with pytest.raises(FinepruneError) as error:
        check_recipe(files.recipe(**sections))
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("layers", "told"), [(3, "model.layers=3"), ([0, 2], r"model.layers=\[0, 2\]")])
def test_layers_that_the_model_does_not_have(files, pretrained, layers, told):
    with pytest.raises(FinepruneError, match=f"{told}: .* has 2 layers"):
        check_recipe(files.recipe(model={"name": pretrained, "layers": layers}))


def test_an_empty_file(files):
    files.validation.write_text("")
    with pytest.raises(FinepruneError, match=r"validation.jsonl: the file is empty"):
        check_recipe(files.recipe())


@pytest.mark.parametrize(
    ("kind", "there", "told"),
    [
        ("token_classification", {"words": ["a"], "tags": ["O"]}, "no column 'tokens'; .*'words', 'tags'"),
        ("token_classification", {"tokens": ["a"], "tag": ["O"]}, "no column 'ner_tags'"),
        ("question_answering", {"id": "1", "question": "a"}, "no column 'context'"),
    ],
)
def test_columns_of_other_kinds(files, tmp_path, kind, there, told):
    table = tmp_path / "rows.jsonl"
    table.write_text(json.dumps(there) + "\n")
    with pytest.raises(FinepruneError, match=rf"rows\.jsonl: {told}"):
        check_recipe(files.recipe(task={"kind": kind, "train": str(table), "validation": str(table)}))


@pytest.mark.parametrize(
    "kind", ["classification", "token_classification", "question_answering", "embedding"]
)
def test_a_list_in_place_of_rows_is_left_to_the_reader(files, tmp_path, kind):
    table = tmp_path / "rows.jsonl"
    table.write_text('[{"text": "a", "label": "x"}, {"text": "b"}]\n')
    check_recipe(files.recipe(task={"kind": kind, "train": str(table), "validation": str(table)}))


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("token_classification", "words.conll", "EU B-ORG\nrejects O\n"),
        ("question_answering", "squad.json", '{"data": []}'),
    ],
)
def test_files_without_columns_are_left_to_their_readers(files, tmp_path, kind, name, content):
    place = tmp_path / name
    place.write_text(content)
    checked = check_recipe(files.recipe(task={"kind": kind, "train": str(place), "validation": str(place)}))
    assert checked["data"] == [str(place)] * 2


def test_an_embedding_model_misses_no_head(files, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a good film\na bad film\n")
    recipe = files.recipe(task={"kind": "embedding", "train": str(texts)}, distillation={})
    # A model of sentences has no head, whatever the classes that its config.json names.
    assert not any("head is new" in line for line in check_recipe(recipe)["warnings"])
