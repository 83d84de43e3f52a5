"""The settings that say where the data of a task are, whatever its kind."""

from dataclasses import dataclass

import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks.source import Source, check_labels


@dataclass(frozen=True)
class Plain(Source):
    """A kind with one setting of its own."""

    kind: str = "plain"
    labels: tuple[str, ...] | None = None

    def check(self):
        check_labels(self.labels)

    def load(self, need_train=True, model=None):
        raise NotImplementedError


FILES = {"train": "a.tsv", "validation": "b.tsv"}
HUB = {"hub": "glue", "subset": "sst2"}


@pytest.mark.parametrize(
    "values", [FILES, {"validation": "b.tsv"}, {**HUB, "train_split": "t"}, {**FILES, "labels": ["n", "p"]}]
)
def test_a_source_comes_back_from_its_dict(values):
    source = Plain.from_dict(values)
    plain = source.to_dict()
    assert Plain.from_dict(plain) == source
    assert plain["kind"] == "plain"
    assert values.items() <= plain.items()
    assert not any(isinstance(value, tuple) for value in plain.values())
    hash(source)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**FILES, "valid": 1}, r"task: unknown setting 'valid'; did you mean validation"),
        ({**FILES, "kind": "qa"}, r"kind is 'qa', expected 'plain'"),
        ({}, r"no data; give the files `train` and `validation`, or a data set as `hub`"),
        ({"train": "a.tsv"}, r"train is 'a\.tsv' but there is no `validation` file"),
        ({**FILES, "hub": "glue"}, r"train is the file 'a\.tsv' and hub is 'glue'; .*not both"),
        ({"validation": "b.tsv", "hub": "glue"}, r"validation is the file 'b\.tsv' and hub is 'glue'"),
        ({**FILES, "subset": "sst2"}, r"subset is 'sst2' but belongs to `hub`"),
        ({**FILES, "train_split": "test"}, r"train_split is 'test' but belongs to `hub`"),
        ({**FILES, "validation_split": "test"}, r"validation_split is 'test' but belongs to `hub`"),
        ({**FILES, "train": 3}, r"train is 3, expected text"),
        ({**FILES, "train": ""}, r"train is '', expected text"),
        ({"hub": True}, r"hub is True, expected text"),
        ({**HUB, "train_split": None}, r"train_split is None, expected text"),
        ({**FILES, "labels": "neg, pos"}, r"labels is 'neg, pos', expected a list of names"),
        ({**FILES, "labels": [0, 1]}, r"labels is 0, expected text"),
        (
            {**FILES, "labels": [False, True]},
            r"labels is False, expected text \(in YAML, put 0, yes and no in quotes",
        ),
        ({**FILES, "labels": ["a"]}, r"labels is \['a'\], expected two or more"),
        ({**FILES, "labels": []}, r"labels is \[\], expected two or more"),
        ({**FILES, "labels": ["a", "b", "a"]}, r"labels has 'a' twice"),
    ],
)
def test_contradictions_are_one_clear_line(values, message):
    with pytest.raises(FinepruneError, match=message) as error:
        Plain.from_dict(values)
    assert "\n" not in str(error.value)


def test_another_validation_file_takes_the_place_of_all_data():
    source = Plain(hub="glue", subset="sst2", train_split="t", validation_split="v", labels=("n", "p"))
    assert source.with_validation("c.tsv") == Plain(validation="c.tsv", labels=("n", "p"))
    assert Plain(**FILES).with_validation("c.tsv") == Plain(validation="c.tsv")


def test_places_are_files_or_splits():
    assert Plain(**FILES).places(need_train=True) == ("a.tsv", "b.tsv")
    assert Plain(**FILES).places(need_train=False) == (None, "b.tsv")
    assert Plain(**HUB).places(need_train=True) == ("train", "validation")
    assert Plain(**HUB, validation_split="v").places(need_train=False) == (None, "v")
    with pytest.raises(FinepruneError, match="task: no training data; give a `train` file"):
        Plain(validation="b.tsv").places(need_train=True)


def test_a_place_is_read_from_a_file_or_from_the_hub():
    def from_hub(*split):
        return split

    assert Plain(**FILES).read("a.tsv", str.upper, from_hub) == "A.TSV"
    assert Plain(**HUB).read("train", str.upper, from_hub) == ("glue", "sst2", "train")
    assert Plain(hub="squad").read("train", str.upper, from_hub) == ("squad", None, "train")


def test_a_missing_file_is_named_with_its_setting(tmp_path):
    there = tmp_path / "a.tsv"
    there.write_text("text\nx\n")
    source = Plain(train=str(there), validation=str(tmp_path / "b.tsv"))
    with pytest.raises(FinepruneError, match=r"^task\.validation=.*b\.tsv: no such file \(looked in "):
        source.check_files()
