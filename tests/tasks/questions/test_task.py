"""The task as a recipe has it: its settings, its data for the Trainer, and whole runs."""

import json
import random
import sys

import numpy as np
import pytest
from transformers import EvalPrediction

from fineprune import FinepruneError, cli
from fineprune.checkpoint.loading import open_model
from fineprune.tasks.kinds import task_config
from fineprune.tasks.questions import task
from fineprune.tasks.questions.prediction import answer
from fineprune.tasks.questions.spans import AnswerRules
from fineprune.tasks.questions.squad import Questions, Span
from fineprune.tasks.questions.task import QuestionAnsweringConfig
from fineprune.training.run import train as run_module
from fineprune.training.run.constant_answers import Answers, Watched
from fineprune.training.run.evaluate import evaluate_run
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

WORDS = ["good", "bad", "film", "very", "a", "b"]


def squad(count: int, seed: int, unanswerable: bool = False) -> dict:
    """Questions of one word, whose answer is the word that follows it in the context."""
    rng = random.Random(seed)
    paragraphs = []
    for row in range(count):
        words = [rng.choice(WORDS[2:]) for _ in range(rng.randint(2, 14))]
        at = rng.randrange(len(words))
        words.insert(at, WORDS[row % 2])
        start = sum(len(word) + 1 for word in words[: at + 1])
        answers = [{"text": words[at + 1], "answer_start": start}]
        if unanswerable and row % 4 == 3:
            answers = []
        qas = [{"id": f"{seed}-{row}", "question": WORDS[row % 2], "answers": answers}]
        paragraphs.append({"context": " ".join(words), "qas": qas})
    return {"version": "x", "data": [{"title": "t", "paragraphs": paragraphs}]}


@pytest.fixture
def recipe(tmp_path, pretrained):
    """`recipe(task settings, pruning=…)` of a run on 20 and 10 questions."""
    for name, seed in (("train", 0), ("dev", 1)):
        for v2 in (False, True):
            value = json.dumps(squad(20 if name == "train" else 10, seed, v2))
            (tmp_path / f"{name}{2 if v2 else 1}.json").write_text(value)

    def make(pruning="movement", **task):
        version = 2 if task.get("unanswerable") else 1
        files = {name: str(tmp_path / f"{file}{version}.json") for name, file in FILES.items()}
        return Recipe.from_dict(
            {
                "model": pretrained,
                "task": {"kind": "question_answering", "stride": 2} | files | task,
                "training": {
                    "steps": 8,
                    "batch_size": 8,
                    "learning_rate": 1e-2,
                    "max_length": 12,
                    "evaluate_every": 4,
                },
                "pruning": None if pruning is None else {"method": pruning, "density": 0.25},
            }
        )

    return make


FILES = {"train": "train", "validation": "dev"}


# -- settings -----------------------------------------------------------------------------------


def test_settings_and_defaults():
    config = task_config({"kind": "question_answering", "train": "a.json", "validation": "b.json"})
    assert config == QuestionAnsweringConfig(train="a.json", validation="b.json")
    assert (config.stride, config.n_best, config.max_answer_length, config.metric) == (None, 20, 30, "f1")
    assert task_config(config.to_dict()) == config
    hub = QuestionAnsweringConfig(hub="squad", subset="plain", train_split="t", validation_split="v")
    assert hub.with_validation("c.json") == QuestionAnsweringConfig(validation="c.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "task: no data; give the files `train` and `validation`"),
        ({"validation": "b", "kind": "qa"}, "kind is 'qa', expected 'question_answering'"),
        ({"validation": "b", "unanswerable": 1}, "unanswerable is 1, expected true or false"),
        (
            {"validation": "b", "mismatched": "skipp"},
            r"task.mismatched='skipp': did you mean skip\? allowed are stop, skip",
        ),
        ({"validation": "b", "metric": "accuracy"}, "task.metric='accuracy': .*allowed are f1, exact_match"),
        ({"validation": "b", "metric": ["f1"]}, r"task.metric=\['f1'\]: "),
        ({"validation": "b", "stride": -1}, "task: stride is -1, expected a number of tokens, 0 or more"),
        ({"validation": "b", "n_best": True}, "task: n_best is True, expected a whole number, 1 or more"),
        ({"validation": "b", "max_answer_length": 0}, "max_answer_length is 0, expected a whole number"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(FinepruneError, match=message):
        QuestionAnsweringConfig.from_dict(settings)


def test_data_that_cannot_be_loaded(write):
    config = QuestionAnsweringConfig(validation=write("dev.json", json.dumps(squad(2, 0))))
    with pytest.raises(FinepruneError, match="no training data; give a `train` file"):
        config.load()
    assert config.load(need_train=False).sizes() == {"train": 0, "validation": 2}


def test_the_hub(monkeypatch):
    seen = []

    def read(*arguments):
        seen.append(arguments)
        return Questions(["1"], ["a"], ["b"], [[Span("b", 0)]])

    monkeypatch.setattr(task, "read_split", read)
    config = QuestionAnsweringConfig(hub="squad_v2", unanswerable=True, mismatched="skip")
    assert config.load().sizes() == {"train": 1, "validation": 1}
    assert seen == [(("squad_v2", None, split), True, "skip") for split in ("train", "validation")]


# -- data for the Trainer -----------------------------------------------------------------------


def test_metrics_undo_the_order_and_ignore_the_padding(write, tokenizer):
    rows = [("good", "a film"), ("bad", "very very very film bad a b"), ("good", "film")]
    truth = ["film", "bad", "film"]
    lines = [
        {"id": str(row), "question": question, "context": context}
        | {"answers": {"text": [truth[row]], "answer_start": [context.index(truth[row])]}}
        for row, (question, context) in enumerate(rows)
    ]
    path = write("q.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    data = QuestionAnsweringConfig(validation=path, stride=1, metric="exact_match").load(need_train=False)
    evaluation = data.evaluation(tokenizer, 9)
    dataset, score = evaluation.rows, evaluation.compute_metrics
    assert evaluation.more == {}
    lengths = [len(ids) for ids in dataset["input_ids"]]
    assert lengths == [5, 6, 7, 9]  # the second question has two windows, with "bad" in both
    assert set(dataset.column_names) == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "start_positions",
        "end_positions",
    }
    starts, ends = np.full((2, 4, 11), -100.0, dtype=np.float32)
    for row, example in enumerate(dataset):
        starts[row, : lengths[row]] = ends[row, : lengths[row]] = -5
        starts[row, example["start_positions"]] = ends[row, example["end_positions"]] = 5
    starts[2:, 0] = ends[2:, 0] = -5
    right = EvalPrediction(predictions=(starts, ends, "more"), label_ids=None)
    assert score(right) == {"exact_match": 1.0, "f1": 1.0}
    starts[0], ends[0] = -5, -5
    starts[0, 0] = ends[0, 0] = 5  # the shortest window now says nothing: its one word is right still
    assert score(right) == {"exact_match": 1.0, "f1": 1.0}
    starts[1, 3], ends[1, 4] = 6, 6  # "a film" for "film": without the article the same
    assert score(right) == {"exact_match": 1.0, "f1": 1.0}
    ends[1, 3] = 7  # "a" has no word in common with "film"
    assert score(right) == {"exact_match": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}


def test_scores_equal_torchmetrics_on_texts_of_other_making(recipe, tokenizer):
    """The same logits, read off by loops over characters of the words, scored by torchmetrics."""
    from torchmetrics.functional.text import squad as official

    data = recipe().task.load()
    evaluation = data.evaluation(tokenizer, 32)  # one window a question
    dataset = evaluation.rows
    generator = np.random.default_rng(3)
    starts, ends = generator.normal(size=(2, len(dataset), 32)).astype(np.float32)
    contexts = dict(zip(data.validation.ids, data.validation.contexts, strict=True))
    by_length = sorted(contexts, key=lambda name: len(contexts[name].split()))
    guesses, truths = [], []
    for row, name in enumerate(by_length):
        words = contexts[name].split()
        pairs = [(one, two) for one in range(len(words)) for two in range(one, len(words))]
        one, two = max(pairs, key=lambda pair: starts[row, 3 + pair[0]] + ends[row, 3 + pair[1]])
        guesses.append({"id": name, "prediction_text": " ".join(words[one : two + 1])})
        spans = data.validation.answers[data.validation.ids.index(name)]
        truths.append({"id": name, "answers": {"text": [span.text for span in spans]}})
    expected = {name: float(value) / 100 for name, value in official(guesses, truths).items()}
    assert 0 < expected["f1"] < 1
    logits = EvalPrediction(predictions=(starts, ends), label_ids=None)
    assert evaluation.compute_metrics(logits) == expected


@pytest.mark.parametrize(("answered", "only_empty"), [("", True), ("bad", False)])
def test_answers_that_are_all_empty_are_noticed(write, tokenizer, answered, only_empty):
    """No two windows have the highest logits at one place, and yet all say that there is no answer.

    Nor does the article among the answers make "" right.
    """
    rows = [("good", "a film", ["film"]), ("bad", "very bad a", ["bad", "a"]), ("film", "b", [])]
    lines = [
        {"id": question, "question": question, "context": context}
        | {"answers": {"text": texts, "answer_start": [context.rindex(text) for text in texts]}}
        for question, context, texts in rows
    ]
    path = write("q.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    data = QuestionAnsweringConfig(validation=path, unanswerable=True).load(need_train=False)
    evaluation = data.evaluation(tokenizer, 12)
    starts, ends = np.zeros((2, 3, 8), dtype=np.float32)
    starts[:, 0] = ends[:, 0] = 3  # [CLS], "no answer": 6 together
    for row in range(3):
        starts[row, 1 + row % 2] = 4  # in the question, or [SEP]: no answer begins there
    if answered:
        starts[2, 4] = ends[2, 4] = 5  # "bad" in the longest window
    logits = EvalPrediction(predictions=(starts, ends), label_ids=None)
    watched = Watched(evaluation.compute_metrics, "spans", {})
    assert watched(logits)["exact_match"] == pytest.approx(2 / 3 if answered else 1 / 3)
    assert evaluation.compute_metrics.only_empty is only_empty
    assert watched.answers == Answers(only_empty, "" if only_empty else None, None)


# -- whole runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pruning", ["movement", "magnitude", None])
@pytest.mark.parametrize("unanswerable", [False, True])
def test_a_run(recipe, tmp_path, pruning, unanswerable):
    made = recipe(pruning, unanswerable=unanswerable, metric="exact_match")
    results = run_recipe(made, tmp_path / "run", progress=False)
    assert set(results["scores"]) == {"loss", "exact_match", "f1"}
    assert results["score"] == results["scores"]["exact_match"]
    assert results["examples"] == {"train": 20, "validation": 10}
    assert results["density"] == (1.0 if pruning is None else 0.25)
    assert Recipe.load(tmp_path / "run" / "recipe.yaml") == made
    model, tokenizer, _ = open_model(tmp_path / "run", need_tokenizer=True)
    assert type(model).__name__ == "BertForQuestionAnswering"
    assert model.config.unanswerable_questions == unanswerable
    assert evaluate_run(tmp_path / "run") == pytest.approx(results["scores"])

    data = made.task.load(need_train=False)
    questions, contexts = data.validation.questions, data.validation.contexts
    rules = made.task.rules()
    assert rules == AnswerRules(unanswerable, 2)
    found = answer(model, tokenizer, questions, contexts, rules, max_length=12)
    right = sum(
        best.text in ([span.text for span in spans] or [""])
        for best, spans in zip(found, data.validation.answers, strict=True)
    )
    assert right <= 10 * results["score"] + 1e-3  # where articles do not count, so more is right
    by_model = AnswerRules(None, 2)  # whether there may be no answer is in the model's config
    assert found == answer(model, tokenizer, questions, contexts, by_model, max_length=12)
    for best, context in zip(found, data.validation.contexts, strict=True):
        assert context[best.start : best.end] == best.text
        assert best.text or unanswerable


def test_a_run_that_was_stopped_is_resumed_as_if_nothing_had_been(recipe, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def on_log(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise Stop

    whole = run_recipe(recipe(), tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(run_module.MetricsFile, "on_log", on_log)
        with pytest.raises(Stop):
            run_recipe(recipe(), tmp_path / "run", progress=False)
    results = run_recipe(recipe(), tmp_path / "run", resume=True, progress=False)
    assert results["resumed_from_step"] == 4
    assert results["scores"] == whole["scores"]
    one, two = ((tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "run"))
    assert one == two


def test_grouped_by_length_and_other_data(recipe, tmp_path):
    made = recipe()
    values = made.to_dict()
    values["training"] |= {"group_by_length": True, "precision": "bfloat16", "keep_best": True}
    run_recipe(Recipe.from_dict(values), tmp_path / "run", progress=False)
    scores = evaluate_run(tmp_path / "run", made.task.train)
    assert set(scores) == {"loss", "exact_match", "f1"}


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["fineprune", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, capsys.readouterr()


def test_predict_on_the_command_line(recipe, tmp_path, monkeypatch, capsys):
    run_recipe(recipe(max_answer_length=1), tmp_path / "run", progress=False)
    code, printed = command(
        monkeypatch, capsys, "predict", tmp_path / "run", "good", "--pair", "a good film", "--json"
    )
    row = json.loads(printed.out)
    assert code == 0
    assert (row["text"], row["pair"]) == ("good", "a good film")
    assert row["answer"] == "a good film"[row["start"] : row["end"]]
    assert " " not in row["answer"]  # the recipe's max_answer_length
    code, printed = command(monkeypatch, capsys, "predict", tmp_path / "run", "good", "--pair", "a good film")
    assert printed.out == f"{row['answer']}\t{row['score']:.4f}\tgood\n"
    code, printed = command(monkeypatch, capsys, "predict", tmp_path / "run", "good")
    assert code == 2
    assert "give the context of each as --pair" in printed.err


def test_a_file_of_another_form_is_found_before_it_is_read(tmp_path):
    place = tmp_path / "dev.csv"
    place.write_text("question,context\nwho,me\n")
    with pytest.raises(FinepruneError, match=r"cannot read questions from a file named \*\.csv; known are"):
        QuestionAnsweringConfig(validation=str(place)).check_files()
