"""The data of a classification: texts and labels as they are read, and their meaning."""

from types import SimpleNamespace

import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks.text.data import Examples
from fineprune.tasks.text.task import ClassificationConfig


@pytest.fixture
def task(write):
    """`task(train, dev, **settings)`: a config of two files, TSV unless they start with a brace."""

    def make(train: str | None, dev: str, **settings) -> ClassificationConfig:
        paths = {}
        for name, text in (("train", train), ("validation", dev)):
            if text is not None:
                paths[name] = write(f"{name}.{'jsonl' if text.startswith('{') else 'tsv'}", text)
        return ClassificationConfig.from_dict({**paths, **settings})

    return make


def trained(*labels: str) -> SimpleNamespace:
    """A model that was trained on these labels; without any, on values."""
    config = SimpleNamespace(
        num_labels=len(labels) or 1,
        problem_type="single_label_classification" if labels else "regression",
        id2label=dict(enumerate(labels)) if labels else {0: "LABEL_0"},
    )
    return SimpleNamespace(config=config)


def test_single_texts_with_inferred_names(task):
    data = task("text\tlabel\na\tpos\n\tneg\nc\tpos\n", "text\tlabel\nd\tneg\n").load()
    assert data.labels == ("neg", "pos")
    assert data.train == Examples(["a", "", "c"], None, [1, 0, 1])
    assert data.validation == Examples(["d"], None, [0])
    assert data.metric == "accuracy"


def test_pairs_and_integers_that_do_not_start_at_zero(task):
    config = task(
        "y\tp\tq\n3\ta\tb\n10\tc\td\n", "q\tp\ty\nf\te\t10\n", text=["p", "q"], label="y", metric="f1"
    )
    data = config.load()
    assert data.labels == ("3", "10")
    assert data.train == Examples(["a", "c"], ["b", "d"], [0, 1])
    assert data.validation == Examples(["e"], ["f"], [1])
    assert data.metric == "f1"


def test_given_labels_set_the_order_and_accept_numbers(task):
    data = task("text\tlabel\na\tpos\nb\t1\n", "text\tlabel\nc\t0\n", labels=["pos", "neg"]).load()
    assert data.train is not None
    assert data.train.labels == [0, 1]
    assert data.validation.labels == [0]


def test_values_are_regression(task):
    data = task("text\tlabel\na\t2.5\nb\t1\n", "text\tlabel\nc\t3\n").load()
    assert data.labels is None
    assert data.metric == "pearson"
    assert data.train == Examples(["a", "b"], None, [2.5, 1.0])
    assert data.validation.labels == [3.0]


def test_a_regression_metric_makes_integers_values(task):
    data = task("text\tlabel\na\t0\nb\t5\n", "text\tlabel\nc\t3\n", metric="spearman").load()
    assert (data.labels, data.metric, data.validation.labels) == (None, "spearman", [3.0])


def test_without_training_data_the_model_knows_the_labels(task):
    config = task(None, "text\tlabel\nc\tpos\nd\t0\n")
    data = config.load(need_train=False, model=trained("neg", "pos"))
    assert data.train is None
    assert data.labels == ("neg", "pos")
    assert data.validation.labels == [1, 0]
    values = task(None, "text\tlabel\nc\t4\n").load(need_train=False, model=trained())
    assert (values.labels, values.metric, values.validation.labels) == (None, "pearson", [4.0])
    given = task(None, "text\tlabel\nc\tb\n", labels=["a", "b"])
    assert given.load(need_train=False).validation.labels == [1]


def test_a_trained_models_integer_names_are_not_positions(task):
    config = task(None, "text\tlabel\nc\t1\n")
    assert config.load(need_train=False, model=trained("1", "2", "3")).validation.labels == [0]
    with pytest.raises(FinepruneError, match=r"row 1: label '1' is not known; allowed are '2', '3'"):
        config.load(need_train=False, model=trained("2", "3"))


def test_hub_names(hub):
    data = hub([1, 0], [0], ("negative", "positive")).load()
    assert data.labels == ("negative", "positive")
    assert data.train is not None
    assert (data.train.labels, data.validation.labels) == ([1, 0], [0])


def test_hub_names_that_are_integers_keep_their_positions(hub):
    data = hub([0, 1, 2], [2], ("1", "2", "3")).load()
    assert (data.labels, data.validation.labels) == (("1", "2", "3"), [2])


def test_hub_names_follow_the_order_of_a_trained_model(hub):
    data = hub([], [0, 1], ("no", "yes")).load(need_train=False, model=trained("yes", "no"))
    assert data.validation.labels == [1, 0]


def test_hub_without_names(hub):
    assert hub([1, 0], [0], None).load().labels == ("0", "1")
    assert hub([1.5, 0.0], [0.2], None).load().labels is None


def test_hub_numbers_as_values(hub):
    config = hub([0, 4], [2], ("0", "1", "2", "3", "4"))
    regression = ClassificationConfig(hub=config.hub, metric="pearson")
    assert regression.load().validation.labels == [2.0]


def test_hidden_hub_labels(hub):
    with pytest.raises(FinepruneError, match=r"glue/sst2\[validation\], row 2: has no label \(-1\)"):
        hub([0, 1], [1, -1], ("neg", "pos")).load()


OK = "text\tlabel\na\tpos\nb\tneg\n"


@pytest.mark.parametrize(
    ("train", "dev", "settings", "message"),
    [
        (
            OK,
            "text\tlabel\na\tpos\nb\tmaybe\n",
            {},
            r"validation\.tsv, row 2: label 'maybe' is not known; .*'neg', 'pos'",
        ),
        (OK, "text\tlabel\na\t\n", {}, r"validation\.tsv, row 1: has no label \(''\)"),
        ("text\tlabel\na\tpos\nb\t\n", OK, {}, r"train\.tsv, row 2: has no label"),
        ("text\tlabel\na\tpos\nb\tpos\n", OK, {}, r"train\.tsv: every row has the label 'pos'"),
        ("text\tlabel\na\t1.5\nb\t1.5\n", OK, {}, r"every row has the label '1\.5'"),
        ("text\tlabel\na\tpos\nb\tpos\n", OK, {"labels": ["pos", "neg"]}, r"every row has the label 'pos'"),
        ("text\tlabel\na\t1.5\nb\t2\n", OK, {}, r"validation\.tsv, row 1: label 'pos' is not a number"),
        (
            "text\tlabel\na\t2\nb\t1.5\n",
            OK,
            {"metric": "f1"},
            r"label '1\.5' is a value, .*metric is 'f1'; allowed: pearson",
        ),
        (OK, OK, {"metric": "pearson"}, r"train\.tsv, row 1: label 'pos' is not a number"),
        (
            OK,
            OK,
            {"labels": ["a", "b"]},
            r"train\.tsv, row 1: label 'pos' is not known; allowed are 'a', 'b'",
        ),
        (None, OK, {}, r"no training data; give a `train` file"),
        (
            '{"text": "a", "label": 0}\n{"text": null, "label": 1}',
            OK,
            {},
            r"train\.jsonl, row 2: column 'text' holds None",
        ),
        ('{"text": 7, "label": 0}', OK, {}, r"train\.jsonl, row 1: column 'text' holds 7, which is not text"),
        ('{"text": "a", "label": null}', OK, {}, r"train\.jsonl, row 1: has no label \(None\)"),
        (
            '{"text": "a", "label": ["x"]}',
            OK,
            {},
            r"train\.jsonl, row 1: label \['x'\] is neither text nor a number",
        ),
        (OK, '{"text": "a", "label": NaN}', {}, r"validation\.jsonl, row 1: has no label \(nan\)"),
        (OK, OK, {"text": "sentence"}, r"train\.tsv: no column 'sentence'; .*it has 'text', 'label'"),
    ],
)
def test_bad_data_is_one_clear_line(task, train, dev, settings, message):
    with pytest.raises(FinepruneError, match=message) as error:
        task(train, dev, **settings).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "model", "message"),
    [
        ({}, None, r"the labels of .*validation\.tsv are not known without training data; give `labels`"),
        (
            {"labels": ["x", "y"]},
            trained("a", "b"),
            r"labels is \['x', 'y'\] but the model has 'a', 'b'; remove",
        ),
        ({"labels": ["x", "y"]}, trained(), r"but the model is a regression; remove"),
        (
            {"metric": "f1"},
            trained(),
            r"metric 'f1' but the model predicts values; allowed: pearson, spearman",
        ),
        (
            {"metric": "pearson"},
            trained("a", "b"),
            r"metric 'pearson' but the model predicts classes; allowed: acc",
        ),
    ],
)
def test_settings_against_a_trained_model(task, settings, model, message):
    with pytest.raises(FinepruneError, match=message):
        task(None, OK, **settings).load(need_train=False, model=model)


@pytest.mark.realdata
def test_real_single_sentences(realdata):
    config = ClassificationConfig(
        train=str(realdata / "sst2/train.tsv"), validation=str(realdata / "sst2/dev.tsv"), text="sentence"
    )
    data = config.load()
    assert data.train is not None
    assert (len(data.train), len(data.validation), data.labels) == (67_349, 872, ("0", "1"))
    assert data.train.texts[0].startswith("hide new secretions from the parental units")
    assert data.train.labels is not None
    assert data.train.labels[0] == 0


@pytest.mark.realdata
def test_real_pairs(realdata):
    config = ClassificationConfig(
        train=str(realdata / "mrpc/train.tsv"),
        validation=str(realdata / "mrpc/dev.tsv"),
        text=("#1 String", "#2 String"),
        label="Quality",
        labels=("different", "same"),
        metric="f1",
    )
    data = config.load()
    assert data.train is not None
    assert data.train.pairs is not None
    assert (len(data.train), len(data.train.pairs), len(data.validation)) == (3_668, 3_668, 408)
    # MRPC: 279 of the 408 validation pairs are paraphrases (68.4 %, the majority baseline of GLUE).
    assert sum(data.validation.labels or ()) == 279


@pytest.mark.realdata
def test_real_json_lines_with_names(realdata):
    config = ClassificationConfig(
        train=str(realdata / "mnli/train.jsonl"),
        validation=str(realdata / "mnli/dev.jsonl"),
        text=("premise", "hypothesis"),
    )
    data = config.load()
    assert data.labels == ("contradiction", "entailment", "neutral")
    assert data.validation.labels is not None
    assert (len(data.validation), data.validation.labels[:2]) == (3_119, [0, 2])
