"""The table of kinds: what follows from a kind's name, a model's class, and one more entry."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import transformers

from fineprune import cli
from fineprune.errors import FinepruneError
from fineprune.tasks import kinds
from fineprune.tasks.kinds import KINDS, Kind, data_for, kind_named, kind_of, task_config
from fineprune.tasks.questions.task import QuestionAnsweringConfig
from fineprune.tasks.source import Source
from fineprune.tasks.text.task import ClassificationConfig
from fineprune.tasks.tokens.task import TokenClassificationConfig
from fineprune.training.distillation.heads import head_of
from fineprune_runtime.architectures import TASKS

FILES = {"train": "a", "validation": "b"}


def model_of(name: str, **settings):
    """A model of a class with this name."""
    model = type(name, (SimpleNamespace,), {})()
    model.config = SimpleNamespace(**settings)
    return model


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_entry_fits_its_parts(kind):
    assert kind.config.kind == kind.name == kind.config(**FILES).kind
    assert hasattr(transformers, kind.auto_class)
    assert hasattr(transformers, f"Bert{kind.suffix}") is (kind.answer_in_place is None)


def test_the_runtime_runs_heads_of_the_same_names():
    assert {kind.suffix for kind in KINDS if kind.answer_in_place is None} == set(TASKS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (FILES, ClassificationConfig(**FILES)),
        ({"kind": "classification", **FILES}, ClassificationConfig(**FILES)),
        ({"kind": "question_answering", **FILES}, QuestionAnsweringConfig(**FILES)),
        ({"kind": "token_classification", **FILES}, TokenClassificationConfig(**FILES)),
        ("squad", QuestionAnsweringConfig(hub="rajpurkar/squad")),
        ({"name": "squad"}, QuestionAnsweringConfig(hub="rajpurkar/squad")),
    ],
)
def test_a_section_is_read_by_its_kind_or_name(values, expected):
    assert task_config(values) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"task: expected a mapping of settings, got \[\]"),
        (3, "task: expected a mapping of settings, got 3"),
        (
            {"kind": "clasification", **FILES},
            r"task\.kind='clasification': did you mean classification\? allowed are class",
        ),
        ({"kind": ["classification"], **FILES}, r"task\.kind=\['classification'\]: "),
    ],
)
def test_what_is_no_section(values, message):
    with pytest.raises(FinepruneError, match=message) as error:
        task_config(values)
    assert "\n" not in str(error.value)


def test_the_kind_of_a_model_is_the_end_of_its_class_or_of_a_base():
    assert kind_of(model_of("BertForTokenClassification")) is kind_named("token_classification")
    base = type(model_of("BertForQuestionAnswering"))
    assert kind_of(type("Mine", (base,), {})()) is kind_named("question_answering")
    assert kind_of(model_of("BertModel")) is None
    assert kind_of(model_of("GPT2LMHeadModel")) is None


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("BertForSequenceClassification", 2, "texts"),
        ("BertForSequenceClassification", 1, "values"),
        ("BertForTokenClassification", 2, "tokens"),
        ("BertForQuestionAnswering", 2, "spans"),
    ],
)
def test_the_form_of_the_answers(name, labels, expected):
    model = model_of(name, num_labels=labels)
    assert kind_of(model).head(model.config) == head_of(model) == expected


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertModel"])
def test_data_are_of_the_model_s_kind(name):
    with pytest.raises(FinepruneError) as error:
        data_for(model_of(name), ClassificationConfig(**FILES))
    assert str(error.value) == (
        f"task: kind is 'classification' but the model is a {name}; "
        "it takes a model that was trained on such a task"
    )


def test_data_take_their_labels_from_the_model(write):
    config = ClassificationConfig(validation=write("dev.tsv", "text\tlabel\na\tpos\n"))
    names = {"num_labels": 2, "problem_type": None, "id2label": {0: "neg", 1: "pos"}}
    data = data_for(model_of("BertForSequenceClassification", **names), config)
    assert (data.labels, data.validation.labels, data.train) == (("neg", "pos"), [1], None)


# -- one more kind ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choices(Source):
    kind: str = "multiple_choice"

    def check(self):
        pass

    def load(self, need_train=True, model=None):
        return f"the data of {model.config.title}"


def test_a_kind_is_one_entry(monkeypatch, tmp_path, capsys):
    more = Kind(
        name="multiple_choice",
        suffix="ForMultipleChoice",
        config=Choices,
        head=lambda config: "texts",
        predict=lambda model, tokenizer, asked: [{"text": text, "choice": 1} for text in asked.texts],
        lines=lambda rows: (f"{row['choice']}\t{row['text']}" for row in rows),
    )
    monkeypatch.setattr(kinds, "KINDS", (*KINDS, more))
    assert task_config({"kind": "multiple_choice", **FILES}) == Choices(**FILES)
    model = model_of("BertForMultipleChoice", title="exams")
    assert kind_of(model) is more
    assert head_of(model) == "texts"
    assert more.auto_class == "AutoModelForMultipleChoice"
    assert data_for(model, Choices(**FILES)) == "the data of exams"
    monkeypatch.setattr("fineprune.checkpoint.loading.open_model", lambda *_, **__: (model, None, tmp_path))
    monkeypatch.setattr("sys.argv", ["fineprune", "predict", str(tmp_path), "one", "two"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, capsys.readouterr().out) == (0, "1\tone\n1\ttwo\n")
