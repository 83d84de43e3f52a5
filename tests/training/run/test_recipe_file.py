"""The YAML of a recipe: numbers, repeated keys, files that are not YAML, and overrides of sections."""

import pytest
import yaml

from fineprune import FinepruneError
from fineprune.training.run.recipe_file import dump_yaml, override, read_yaml


def refused(call, *parts: str) -> None:
    with pytest.raises(FinepruneError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# -- reading and writing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E-2", 1e-2),
        ("1e+1", 10.0),
        (".5e-3", 5e-4),
        ("3.e-2", 3e-2),
        ("3.0e-05", 3e-5),
        ("0.01", 0.01),
        ("1", 1),
        ("e10", "e10"),
        ("model-2e", "model-2e"),
    ],
)
def test_numbers_as_everybody_writes_them(tmp_path, text, value):
    (tmp_path / "recipe.yaml").write_text(f"rate: {text}")
    rate = read_yaml(tmp_path / "recipe.yaml", "recipe")["rate"]
    assert (type(rate), rate) == (type(value), value)


def test_the_loader_of_yaml_itself_is_unchanged():
    assert yaml.safe_load("2e-4") == "2e-4"


def test_written_values_keep_their_order_and_texts_stay_texts(tmp_path):
    values = {"b": "2e-4", "a": [1, None, True], "c": "ü"}
    assert dump_yaml(values) == "b: '2e-4'\na:\n- 1\n- null\n- true\nc: ü\n"
    (tmp_path / "recipe.yaml").write_text(dump_yaml(values), encoding="utf-8")
    assert read_yaml(tmp_path / "recipe.yaml", "recipe") == values


def test_a_missing_file(tmp_path):
    refused(
        lambda: read_yaml(tmp_path / "none.yaml", "study"),
        "none.yaml: the study cannot be read (No such file",
    )
    refused(lambda: read_yaml(tmp_path, "recipe"), str(tmp_path), "is not a regular file")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"model: [", "not YAML"),
        (b"model: a\n\tb: c", "not YAML"),
        (b"model: a\ntask: sst2\nmodel: b", "the key model is there twice"),
        (b"model: a\ntask: {train: a, train: b}", "the key train is there twice"),
        (b"a: b: c", "not YAML"),
        (b"a: !!int ''", "not YAML"),
        (b"a: !!timestamp 1", "not YAML"),
        (b"model: \xff", "cannot be read"),
        (b"model: \x00", "not YAML"),
        (b"model: !!python/object:os.system x", "not YAML"),
        (b"model: *nothing", "not YAML"),
        (b"model: 2020-13-45", "not YAML"),
    ],
)
def test_a_file_that_is_not_yaml(tmp_path, content, part):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    refused(lambda: read_yaml(path, "recipe"), str(path), part)


# -- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"model": "minilm", "training": {"steps": 1000}}),
        (["training.steps=7"], {"model": "minilm", "training": {"steps": 7}}),
        (["training.steps=5", "training.steps=6"], {"model": "minilm", "training": {"steps": 6}}),
        (["training.steps="], {"model": "minilm", "training": {"steps": None}}),
        (["model.layers=3"], {"model": {"name": "minilm", "layers": 3}, "training": {"steps": 1000}}),
        (["training=null", "training.epochs=2e0"], {"model": "minilm", "training": {"epochs": 2.0}}),
        (
            ["task.train=a=b.tsv"],
            {"model": "minilm", "training": {"steps": 1000}, "task": {"train": "a=b.tsv"}},
        ),
    ],
)
def test_an_override(overrides, expected):
    assert override({"model": "minilm", "training": {"steps": 1000}}, overrides) == expected


def test_settings_of_the_chosen_method_replace_those_of_the_file_and_overrides_replace_both():
    def values():
        return {
            "training": {"steps": 1000, "seed": 1},
            "pruning": {"method": "movement"},
            "methods": {"l0": {"training": {"steps": 5, "seed": 2}}, "dense": {"training": {"seed": 3}}},
        }

    assert override(values(), [])["training"] == {"steps": 1000, "seed": 1}
    chosen = override(values(), ["pruning.method=l0", "training.seed=9"])
    assert chosen == {"training": {"steps": 5, "seed": 9}, "pruning": {"method": "l0"}}
    dense = override(values(), ["pruning=null"])
    assert dense == {"training": {"steps": 1000, "seed": 3}, "pruning": None}


@pytest.mark.parametrize(
    "text", ["pruning.density", "", "=1", ".density=1", "pruning.=1", "pruning..density=1"]
)
def test_not_an_override(text):
    refused(lambda: override({}, [text]), repr(text), "pruning.density=0.03")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("training.steps=[", ["'training.steps=['", "not YAML"]),
        ("training.steps=2020-13-45", ["'training.steps=2020-13-45'"]),
        ("training.steps.more=1", ["steps is 1000, which has no settings in it"]),
        ("model.name.more=1", ["name is 'minilm'"]),
    ],
)
def test_a_wrong_override(text, parts):
    refused(lambda: override({"model": "minilm", "training": {"steps": 1000}}, [text]), *parts)


BOMB = "- &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"- &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "holds more than 30,000 values, with aliases (*) written out"),
        ("a: &a [*a]", "nested more than 100 levels deep"),
        ("[" + "[],1," * 20_000 + "]", "it holds more than 30,000 values"),
        ("[" * 20_000, "more than 200 brackets"),
        ("a: " + "{a: " * 150 + "1" + "}" * 150, "nested more than 100 levels deep"),
        ("rate: 1" + "0" * 400, "a whole number of 1329 bits"),
        ("rate: 0x" + "f" * 5000, "a whole number of 20000 bits"),
        ("rate: 1" + "0" * 5000, "not YAML (Exceeds the limit"),
    ],
    ids=["bomb", "cycle", "many", "brackets", "deep", "large", "hexadecimal", "digits"],
)
def test_what_no_setting_can_be(tmp_path, text, part):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    refused(lambda: read_yaml(path, "recipe"), "recipe.yaml", part)
    if "\n" not in text:
        refused(lambda: override({}, [f"training={text}"]), part)


def test_anchors_are_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: &a {steps: 3}\nb: *a\nc: {<<: *a, seed: 1}")
    assert read_yaml(tmp_path / "recipe.yaml", "recipe") == {
        "a": {"steps": 3},
        "b": {"steps": 3},
        "c": {"steps": 3, "seed": 1},
    }


def test_pipes_and_devices_are_not_read(tmp_path):
    (tmp_path / "recipe.yaml").symlink_to("/dev/zero")
    refused(lambda: read_yaml(tmp_path / "recipe.yaml", "recipe"), "not a regular file")
