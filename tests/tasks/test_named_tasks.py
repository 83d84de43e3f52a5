"""Tasks by name: what each stands for, on the hub and in a folder of files."""

import json
from pathlib import Path

import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks.kinds import task_config
from fineprune.tasks.named_tasks import TASKS, expand
from fineprune.tasks.text.data import Examples
from fineprune.tasks.text.task import ClassificationConfig


def put(folder: Path, *names: str, columns: tuple[str, ...] = ("sentence", "label")) -> None:
    """Tables of one row, whose cells are "1"."""
    folder.mkdir(exist_ok=True)
    for name in names:
        if name.endswith(".jsonl"):
            text = json.dumps(dict.fromkeys(columns, "1")) + "\n"
        else:
            text = "\t".join(columns) + "\n" + "\t".join("1" for _ in columns) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def refused(values, *parts: str) -> None:
    with pytest.raises(FinepruneError) as error:
        task_config(values)
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("name", "text", "labels", "metric"),
    [
        ("cola", "sentence", ("unacceptable", "acceptable"), "matthews"),
        ("sst2", "sentence", ("negative", "positive"), None),
        ("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), None),
        ("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), None),
        ("stsb", ("sentence1", "sentence2"), None, "pearson"),
        ("qnli", ("question", "sentence"), ("entailment", "not_entailment"), None),
        ("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment"), None),
    ],
)
def test_glue_on_the_hub(name, text, labels, metric):
    expected = ClassificationConfig(
        hub="nyu-mll/glue", subset=name, text=text, label="label", labels=labels, metric=metric
    )
    assert task_config({"name": name}) == task_config(name) == expected


def test_mnli_on_the_hub_has_two_validation_sets():
    config = task_config("mnli")
    assert config == ClassificationConfig(
        hub="nyu-mll/glue",
        subset="mnli",
        validation_split="validation_matched",
        text=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        more={"mismatched": "validation_mismatched"},
    )
    assert ClassificationConfig.from_dict(config.to_dict()) == config


def test_squad():
    assert expand({"name": "squad"}) == {"kind": "question_answering", "hub": "rajpurkar/squad"}
    assert expand({"name": "squad_v2", "stride": 64}) == {
        "kind": "question_answering",
        "hub": "rajpurkar/squad_v2",
        "unanswerable": True,
        "stride": 64,
    }


def test_squad_in_a_folder(tmp_path):
    put(tmp_path, "train-v1.1.json", "dev-v1.1.json", "train-v2.0.json", "dev-v2.0.json")
    assert expand({"name": "squad", "data_dir": str(tmp_path)}) == {
        "kind": "question_answering",
        "train": str(tmp_path / "train-v1.1.json"),
        "validation": str(tmp_path / "dev-v1.1.json"),
    }


def test_squad_v2_is_not_read_from_the_files_of_v1(tmp_path):
    put(tmp_path, "train-v1.1.json", "dev-v1.1.json")
    with pytest.raises(FinepruneError, match=r"no train\.json.*\(or train-v2\.0\) for squad_v2"):
        expand({"name": "squad_v2", "data_dir": str(tmp_path)})
    put(tmp_path, "train-v2.0.json", "dev-v2.0.json")
    found = expand({"name": "squad_v2", "data_dir": str(tmp_path)})
    assert found["train"] == str(tmp_path / "train-v2.0.json")
    assert found["validation"] == str(tmp_path / "dev-v2.0.json")


@pytest.mark.parametrize(("name", "close"), [("QQP", "qqp"), ("SST-2", "sst2"), ("SQuAD", "squad")])
def test_near_names_in_any_case(name, close):
    with pytest.raises(FinepruneError, match=f"did you mean {close}"):
        expand({"name": name})


def test_what_stands_beside_the_name_wins():
    config = task_config({"name": "mnli", "metric": "f1", "more": None, "validation_split": "train[:9]"})
    assert isinstance(config, ClassificationConfig)
    assert (config.metric, config.more, config.validation_split) == ("f1", None, "train[:9]")
    assert task_config({"name": "sst2", "hub": "other/sst2", "subset": None}).to_dict()["hub"] == "other/sst2"


@pytest.mark.parametrize(
    ("name", "train", "dev", "text", "label"),
    [
        ("sst2", "train.tsv", "dev.tsv", ("sentence",), "label"),
        ("sst2", "train.jsonl", "validation.jsonl", ("text",), "label"),
        ("mrpc", "train.tsv", "dev.tsv", ("#1 String", "#2 String"), "Quality"),
        ("rte", "train.jsonl", "dev.tsv", ("sentence1", "sentence2"), "label"),
        ("qqp", "train.tsv", "dev.tsv", ("question1", "question2"), "is_duplicate"),
        ("stsb", "train.tsv", "dev.tsv", ("sentence1", "sentence2"), "score"),
        ("mnli", "train.jsonl", "dev.jsonl", ("sentence1", "sentence2"), "gold_label"),
        ("mnli", "train.tsv", "dev.tsv", ("premise", "hypothesis"), "label"),
        ("qnli", "train-00000-of-00001.tsv", "dev.tsv", ("question", "sentence"), "label"),
    ],
)
def test_a_folder_says_its_files_and_columns(tmp_path, name, train, dev, text, label):
    put(tmp_path, train, dev, columns=(label, *text))
    config = task_config({"name": name, "data_dir": str(tmp_path)})
    assert isinstance(config, ClassificationConfig)
    assert (config.hub, config.subset, config.more) == (None, None, None)
    assert (config.train, config.validation) == (str(tmp_path / train), str(tmp_path / dev))
    assert (config.columns, config.label) == (text, label)
    assert list(config.labels or []) == TASKS[name].get("labels", [])


def test_colas_own_files_in_a_folder(tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("gj04\t1\t\tThey drank.\ncj99\t0\t*\tDrank they it.\n")
    data = task_config({"name": "cola", "data_dir": str(tmp_path)}).load()
    assert data.train == Examples(["They drank.", "Drank they it."], None, [1, 0])


def test_parquet_columns(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"sentence": ["a"], "label": [1]})
    for name in ("train.parquet", "validation.parquet"):
        pyarrow.parquet.write_table(table, tmp_path / name)
    assert task_config({"name": "cola", "data_dir": str(tmp_path)}).to_dict()["text"] == "sentence"


@pytest.mark.parametrize("stem", ["dev", "validation"])
def test_mismatched_files_join(tmp_path, stem):
    names = ("train.jsonl", f"{stem}_matched.jsonl", f"{stem}_mismatched.jsonl")
    put(tmp_path, *names, columns=("premise", "hypothesis", "label"))
    config = task_config({"name": "mnli", "data_dir": str(tmp_path)})
    assert isinstance(config, ClassificationConfig)
    assert config.validation == str(tmp_path / names[1])
    assert config.more == {"mismatched": str(tmp_path / names[2])}


def test_files_instead_of_a_folder(tmp_path):
    put(tmp_path, "a.tsv", "b.tsv", columns=("text", "label"))
    config = task_config(
        {"name": "sst2", "train": str(tmp_path / "a.tsv"), "validation": str(tmp_path / "b.tsv")}
    )
    assert isinstance(config, ClassificationConfig)
    assert (config.hub, config.text, config.labels) == (None, "text", ("negative", "positive"))


def test_columns_that_nothing_is_known_of_are_explained_when_read(tmp_path):
    put(tmp_path, "train.tsv", "dev.tsv", columns=("a", "b"))
    config = task_config({"name": "sst2", "data_dir": str(tmp_path)})
    with pytest.raises(FinepruneError, match=r"no column 'sentence'; .*it has 'a', 'b'"):
        config.load()
    assert task_config({"name": "sst2", "data_dir": str(tmp_path), "text": "a"}).to_dict()["text"] == "a"


def test_unknown_names_and_contradictions(tmp_path):
    refused("mnlii", "task.name='mnlii': did you mean mnli? allowed are cola, sst2")
    refused({"name": ["mnli"]}, "task.name=['mnli']: ")
    refused({"name": None}, "task.name=None: ")
    refused({"name": "sst2", "kind": "token_classification"}, "kind is 'token_classification' but sst2 is")
    refused({"name": "sst2", "data_dir": "nowhere"}, "'nowhere', which is not a folder", "nyu-mll/glue")
    refused({"name": "sst2", "data_dir": str(tmp_path), "hub": "x"}, "give one")
    refused({"name": "sst2", "lable": "x"}, "unknown setting 'lable'", "label")
    put(tmp_path, "train.tsv", "notes.txt")
    refused({"name": "sst2", "data_dir": str(tmp_path)}, "no dev.tsv|.csv|.jsonl|.parquet", "'notes.txt'")
    put(tmp_path, "train.jsonl", "dev.tsv")
    refused({"name": "sst2", "data_dir": str(tmp_path)}, "'train.tsv', 'train.jsonl'", "say which")


# -- further validation sets ------------------------------------------------------------------


def test_more_is_read_with_the_labels_of_the_task(write):
    config = ClassificationConfig(
        train=write("train.tsv", "text\tlabel\na\tyes\nb\tno\n"),
        validation=write("dev.tsv", "text\tlabel\nc\tno\n"),
        more={"other": write("other.tsv", "text\tlabel\nd d\tyes\ne\tno\nf\tno\n")},
    )
    data = config.load()
    assert data.sizes() == {"train": 2, "validation": 1, "other": 3}
    assert data.more["other"].labels == [1, 0, 0]
    assert config.with_validation("x.tsv").more is None


def test_more_is_rows_in_order_of_length(write, tokenizer):
    data = ClassificationConfig(
        train=write("train.tsv", "text\tlabel\na\tyes\nb\tno\n"),
        validation=write("dev.tsv", "text\tlabel\nfilm\tno\n"),
        more={"other": write("other.tsv", "text\tlabel\ngood film\tyes\nbad\tno\n")},
    ).load()
    rows = data.evaluation(tokenizer, 8).more["other"].rows
    assert rows["input_ids"] == [[2, 6, 3], [2, 5, 7, 3]]
    assert rows["labels"] == [0, 1]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ("x.tsv", "more is 'x.tsv', expected names and files"),
        ({"validation": "x.tsv"}, "more names a set 'validation'"),
        ({"a b": "x.tsv"}, "more names a set 'a b'"),
        ({1: "x.tsv"}, "more names a set 1"),
        ({"other": 3}, "more.other is 3"),
    ],
)
def test_wrong_more(more, part):
    refused({"train": "a.tsv", "validation": "b.tsv", "more": more}, part)
