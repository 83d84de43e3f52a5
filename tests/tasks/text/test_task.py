import subprocess
import sys

import pytest

from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.tasks.text.task import ClassificationConfig

FILES = {"train": "train.tsv", "validation": "dev.tsv"}


def test_defaults_and_lists():
    config = ClassificationConfig.from_dict(
        {"kind": "classification", **FILES, "text": ["a", "b"], "labels": ["x", "y"]}
    )
    assert config.text == ("a", "b") == config.columns
    assert config.labels == ("x", "y")
    assert (config.label, config.train_split, config.validation_split) == ("label", "train", "validation")
    assert ClassificationConfig.from_dict(FILES).columns == ("text",)


@pytest.mark.parametrize(
    "values",
    [
        FILES,
        {"validation": "dev.tsv"},
        {**FILES, "text": ["a", "b"], "label": "y", "labels": ["n", "p"], "metric": "f1"},
        {
            "hub": "glue",
            "subset": "stsb",
            "validation_split": "test",
            "metric": "spearman",
            "text": "sentence1",
        },
    ],
)
def test_a_config_survives_being_written_down(values):
    config = ClassificationConfig.from_dict(values)
    plain = config.to_dict()
    assert ClassificationConfig.from_dict(plain) == config
    assert plain["kind"] == "classification"
    assert not any(isinstance(value, tuple) for value in plain.values())
    hash(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"task: expected a mapping"),
        ({}, r"no data; give the files `train` and `validation`, or a data set as `hub`"),
        ({**FILES, "label": None}, r"label is None, expected text"),
        ({**FILES, "text": 5}, r"text is 5, expected a list of names"),
        ({**FILES, "text": ["a", 1]}, r"text is 1, expected text"),
        ({**FILES, "text": []}, r"text names 0 columns \[\], allowed: 1 or 2"),
        ({**FILES, "text": ["a", "b", "c"]}, r"text names 3 columns \['a', 'b', 'c'\], allowed: 1 or 2"),
        ({**FILES, "text": ["a", "a"]}, r"column 'a' is named twice"),
        ({**FILES, "text": "label"}, r"column 'label' is named twice"),
        ({**FILES, "labels": ["a"]}, r"labels is \['a'\], expected two or more"),
        (
            {**FILES, "metric": "acuracy"},
            r"task.metric='acuracy': did you mean accuracy\? allowed are accuracy, f1, matt",
        ),
        ({**FILES, "metric": 1}, r"task.metric=1: did you mean f1\? allowed are accuracy, f1"),
        (
            {**FILES, "metric": "pearson", "labels": ["a", "b"]},
            r"'pearson' is for regression but labels names .*'a', 'b'",
        ),
    ],
)
def test_contradictions_are_one_clear_line(values, message):
    with pytest.raises(FinepruneError, match=message) as error:
        ClassificationConfig.from_dict(values)
    assert "\n" not in str(error.value)


def test_reading_a_config_imports_nothing_heavy():
    code = (
        "import sys, fineprune.tasks.kinds; "
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'numpy', 'sklearn', 'scipy'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_of_several_labels_is_not_scored(write):
    from types import SimpleNamespace

    names = SimpleNamespace(
        problem_type="multi_label_classification", num_labels=2, id2label={0: "a", 1: "b"}
    )
    config = ClassificationConfig(validation=write("v.tsv", "text\tlabel\ngood\ta\n"))
    with pytest.raises(
        FinepruneError, match=r"several labels .* predicts with such a model, but does not score"
    ):
        config.load(need_train=False, model=SimpleNamespace(config=names))


PAIRS = "text\ttext2\tlabel\na\tb\tx\nc\td\ty\n"


def test_a_second_column_of_text_that_is_left_out_is_named(write):
    train, validation = write("t.tsv", PAIRS), write("v.tsv", "text\ttext2\tlabel\ne\tf\tx\n")
    files = {"train": train, "validation": validation}
    with pytest.warns(FinepruneWarning, match=r"column 'text2' is not read; .* 'task.text=\[text,text2\]'"):
        ClassificationConfig(**files).check_files()
    ClassificationConfig(**files, text=("text", "text2")).check_files()
    ClassificationConfig(**files, label="text2").check_files()


def test_files_that_are_no_tables_are_refused_before_their_columns(write):
    place = write("v.json", '[{"text": "a", "label": "x"}]')
    with pytest.raises(FinepruneError, match=r"\*\.json; write one object a line and name it v\.jsonl"):
        ClassificationConfig(validation=place).check_files()


CHAPTERS = "text\tlabel\na\t3.1\nb\t3.10\nc\t3.2\nd\t3.1\ne\t3.10\nf\t3.2\n"


def test_numbers_that_repeat_may_be_names(write):
    files = {"train": write("t.tsv", CHAPTERS), "validation": write("v.tsv", "text\tlabel\ng\t3.1\n")}
    said = r"t\.tsv: labels such as '3\.1' are numbers, so this is a regression; set task\.metric=pearson, or"
    with pytest.warns(FinepruneWarning, match=said):
        assert ClassificationConfig(**files).load().labels is None
    assert ClassificationConfig(**files, metric="pearson").load().labels is None
    named = ClassificationConfig(**files, labels=("3.1", "3.10", "3.2")).load()
    assert (named.labels, named.train.labels) == (("3.1", "3.10", "3.2"), [0, 1, 2, 0, 1, 2])


def test_numbers_that_differ_are_values(write):
    rows = "text\tlabel\na\t3.1\nb\t0.5\nc\t2\n"
    files = {"train": write("t.tsv", rows), "validation": write("v.tsv", rows.replace("\na\t", "\ne\t"))}
    assert ClassificationConfig(**files).load().metric == "pearson"
