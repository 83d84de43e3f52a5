import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import numpy as np
import pytest
import torch
from runtime.models import (
    CONTEXTS,
    KINDS,
    PAIRS,
    QUESTIONS,
    TASKS,
    TEXTS,
    load_torch,
    make_model,
    make_tokenizer,
    renew,
    save,
    torch_logits,
)

from fineprune.tasks.questions.data import UNANSWERABLE
from fineprune.tasks.questions.prediction import answer
from fineprune.tasks.text.prediction import predict
from fineprune.tasks.tokens.prediction import predict_entities
from fineprune_runtime import EngineError, dtypes
from fineprune_runtime.answers import AnswerRules
from fineprune_runtime.architectures import ARCHITECTURES
from fineprune_runtime.loading import load
from fineprune_runtime.predictor import (
    AnswerPredictor,
    EntityPredictor,
    MultiLabelPredictor,
    TextPredictor,
)
from fineprune_runtime.results import Prediction

STORED = [("float32", "keep"), ("float16", "int8"), ("int8", "int4"), ("bfloat16", "float16")]


def pairs_of(kind):
    """Every architecture and task once as it is, and BERT's in every type."""
    return [(kind, task, *STORED[0]) for task in TASKS] if kind != "bert" else [
        (kind, task, *stored) for task in TASKS for stored in STORED
    ]  # fmt: skip


CASES = [case for kind in KINDS for case in pairs_of(kind)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(kind, task, values, embeddings)`: a predictor, the torch model and its tokenizer; made once."""
    known = {}

    def find(*case):
        if case not in known:
            folder = tmp_path_factory.mktemp("models") / "-".join(case)
            known[case] = folder, *save(folder, *case)
        folder, model, tokenizer = known[case]
        return load(folder, threads=1), model, tokenizer

    return find


def close(found, expected):
    """The same answers, whose scores differ by rounding alone."""
    for one, other in zip(found, expected, strict=True):
        ours, theirs = dict(vars(one)), dict(vars(other))
        assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-5)
        assert ours == theirs


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_torch(case, models):
    predictor, model, tokenizer = models(*case)
    for texts, pairs in ((TEXTS, None), (TEXTS, PAIRS)):
        found = predictor.logits(texts, pairs, max_length=38, batch_size=4)
        for index, text in enumerate(texts):
            expected = torch_logits(model, tokenizer, text, None if pairs is None else pairs[index])
            assert found[index].shape == expected.shape
            assert np.abs(found[index] - expected).max() < 1e-5


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "text"])
def test_classes_are_those_of_fineprune(case, models):
    predictor, model, tokenizer = models(*case)
    assert isinstance(predictor, TextPredictor)
    close(predictor.predict(TEXTS, max_length=38), predict(model, tokenizer, TEXTS, max_length=38))
    found = predictor.predict(TEXTS, PAIRS, max_length=20, batch_size=2)
    close(found, predict(model, tokenizer, TEXTS, PAIRS, max_length=20))
    assert {prediction.label for prediction in found} <= {"class 0", "class 1", "class 2"}


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "tokens"])
@pytest.mark.parametrize("length", [8, 38])
def test_entities_are_those_of_fineprune(case, length, models):
    predictor, model, tokenizer = models(*case)
    assert isinstance(predictor, EntityPredictor)
    found = predictor.predict(TEXTS, max_length=length)
    for one, other in zip(found, predict_entities(model, tokenizer, TEXTS, max_length=length), strict=True):
        close(one, other)
    assert sum(map(len, found)) > 12


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "questions"])
@pytest.mark.parametrize(
    ("length", "rules"),
    [
        ({}, {}),
        ({"max_length": 20}, {"unanswerable": True}),
        ({"max_length": 38}, {"stride": 2, "max_answer_length": 3, "n_best": 3}),
    ],
)
def test_answers_are_those_of_fineprune(case, length, rules, models):
    predictor, model, tokenizer = models(*case)
    assert isinstance(predictor, AnswerPredictor)
    expected = answer(model, tokenizer, QUESTIONS, CONTEXTS, AnswerRules(**rules), **length)
    close(predictor.predict(QUESTIONS, CONTEXTS, batch_size=3, **length, **rules), expected)


def test_a_config_says_that_there_may_be_no_answer(tmp_path):
    model, tokenizer = save(tmp_path / "small", "bert", "questions")
    file = tmp_path / "small" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {UNANSWERABLE: True}))
    model.config.unanswerable_questions = True
    predictor = load(renew(tmp_path / "small"))
    found = predictor.predict(QUESTIONS, CONTEXTS)
    assert found == predictor.predict(QUESTIONS, CONTEXTS, unanswerable=True)
    assert found != predictor.predict(QUESTIONS, CONTEXTS, unanswerable=False)
    close(found, answer(model, tokenizer, QUESTIONS, CONTEXTS))


def test_a_regression(tmp_path):
    model, tokenizer = save(tmp_path / "small", "roberta", "text", classes=1)
    predictor = load(tmp_path / "small")
    found = predictor.predict(TEXTS, max_length=38)
    assert all(prediction.label is None for prediction in found)
    close(found, predict(model, tokenizer, TEXTS, max_length=38))


def test_tags_that_are_not_of_entities(tmp_path):
    save(tmp_path / "small", "bert", "tokens")
    file = tmp_path / "small" / "config.json"
    config = json.loads(file.read_text())
    config["id2label"] = {str(index): name for index, name in enumerate(["DET", "NOUN", "VERB", "ADJ", "X"])}
    file.write_text(json.dumps(config))
    model, tokenizer = load_torch(renew(tmp_path / "small"), "bert", "tokens")
    (found,) = load(tmp_path / "small").predict(["good film"])
    assert [entity.text for entity in found] == ["good", "film"]
    close(found, predict_entities(model, tokenizer, ["good film"])[0])


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_was_never_pruned_runs_and_says_so(task, tmp_path, caplog):
    make_model("electra", task, pruned=False).save_pretrained(tmp_path)
    make_tokenizer("electra").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "fineprune_runtime"):
        predictor = load(tmp_path)
    assert "was never pruned, 100 % of weights remain: it runs dense" in caplog.text
    model, tokenizer = load_torch(tmp_path, "electra", task)
    found = predictor.logits(TEXTS[:2])
    for text, logits in zip(TEXTS, found, strict=False):
        assert np.abs(logits - torch_logits(model, tokenizer, text)).max() < 1e-5


def test_arrays_of_ids(models):
    predictor, model, _ = models("bert", "text", "float32", "keep")

    ids, mask, types = (
        np.array([[2, 6, 7, 3], [2, 5, 3, 0]]),
        np.array([[1] * 4, [1, 1, 1, 0]]),
        np.eye(2, 4, 1),
    )
    with torch.no_grad():
        given = {"attention_mask": torch.from_numpy(mask), "token_type_ids": torch.from_numpy(types).long()}
        expected = model(torch.from_numpy(ids), **given).logits.numpy()
    assert np.abs(predictor.network(ids, mask, types) - expected).max() < 1e-5
    assert predictor.network(ids[:1]).shape == (1, 3)
    with pytest.raises(EngineError, match="41 tokens are too many: the model's positions end at 40"):
        predictor.network(np.zeros((1, 41)))
    assert predictor.network(ids[:0]).shape == (0, 3)
    for odd in (ids[0], ids[:, :0]):
        with pytest.raises(
            EngineError, match=r"ids have the shape \(.*\), expected \(batch, length\), of 1 tok"
        ):
            predictor.network(odd)
    for name, given in (("mask", (mask[:, :3],)), ("types", (None, types[:1]))):
        with pytest.raises(EngineError, match=rf"{name} has the shape \(.*\), expected \(2, 4\) as ids"):
            predictor.network(ids, *given)


def test_what_one_can_ask_of_a_predictor(models):
    predictor, model, _ = models("bert", "text", "int8", "int4")
    assert predictor.labels == ("class 0", "class 1", "class 2")
    assert (predictor.max_length, predictor.regression) == (40, False)
    assert predictor.encoder.dtype == "float32"
    dense = sum(4 * parameter.numel() for parameter in model.parameters())
    assert predictor.encoder.nbytes < predictor.nbytes < dense


def test_the_usual_lengths(tmp_path):
    save(tmp_path / "a", "bert", "text", max_position_embeddings=600)
    assert len(load(tmp_path / "a").logits(["good " * 700])) == 1
    predictor = load(tmp_path / "a")
    assert predictor._tokens.length(None, predictor.usual, False) == 128
    save(tmp_path / "b", "bert", "questions", max_position_embeddings=600)
    predictor = load(tmp_path / "b")
    assert len(predictor.logits(["good " * 700])[0]) == 384


def test_batches_do_not_change_answers(models):
    predictor, *_ = models("roberta", "tokens", "float32", "keep")
    alone = predictor.logits(TEXTS, batch_size=1)
    for size in (2, 5, 100):
        for one, other in zip(alone, predictor.logits(TEXTS, batch_size=size), strict=True):
            assert np.abs(one - other).max() < 1e-5


def test_several_threads_at_once(models):
    predictor, *_ = models("bert", "text", "float32", "keep")
    expected = predictor.predict(TEXTS)
    found = {}

    def ask(number):
        found[number] = [predictor.predict(TEXTS) for _ in range(5)]

    threads = [Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers == expected for rows in found.values() for answers in rows)
    assert len(found) == 4


@pytest.mark.parametrize("task", TASKS)
def test_nothing_asked(task, models):
    predictor, *_ = models("bert", task, "float32", "keep")
    assert predictor.predict([], [] if task == "questions" else None) == []
    assert predictor.logits([]) == []


@pytest.mark.parametrize(
    ("task", "arguments", "settings", "message"),
    [
        ("text", ("good",), {}, "texts is one string 'good'; give a list"),
        ("text", ([3],), {}, r"texts\[0\] is 3, which is not text"),
        ("text", (["a"], []), {}, "1 texts but 0 pairs"),
        ("text", (["a"],), {"max_length": 41}, "max_length is 41; this model takes 3 to 40 tokens"),
        ("text", (["a"],), {"batch_size": 0}, "batch_size is 0"),
        ("text", (["\ud800"],), {}, "holds a lone surrogate at 0"),
        ("tokens", (["a"], ["b"]), {}, "this model finds entities, in single texts; leave pairs out"),
        ("tokens", (["a"],), {"max_length": 2}, "max_length is 2; this model takes 3 to 40"),
        ("questions", (["a"],), {}, "the model answers questions; give the context of each as pairs"),
        (
            "questions",
            (["a"], ["b"]),
            {"max_length": 41},
            "max_length is 41; this model takes 4 to 40 tokens",
        ),
        ("questions", (["a"], ["b"]), {"n_best": 0}, "n_best is 0, expected a whole number, 1 or more"),
        (
            "questions",
            (["a"], ["b"]),
            {"max_answer_length": 0},
            "max_answer_length is 0, expected a whole number, 1 or more",
        ),
        (
            "questions",
            (["a"], ["b"]),
            {"best": 3},
            "there is no rule 'best', allowed: unanswerable, st",
        ),
        ("questions", (["a"], ["b"]), {"stride": 40}, "stride=40: too long for windows of max_length=40"),
    ],
)
def test_what_cannot_be_answered(task, arguments, settings, message, models):
    predictor, *_ = models("bert", task, "float32", "keep")
    with pytest.raises(EngineError, match=message):
        predictor.predict(*arguments, **settings)


@pytest.mark.parametrize("kind", [iter, tuple, np.array])
def test_texts_of_any_sequence(kind, models):
    texts, contexts = ["a", "b a", ""], ["b", "a b", "b"]
    for task in ("text", "tokens"):
        predictor, *_ = models("bert", task, "float32", "keep")
        assert predictor.predict(kind(texts)) == predictor.predict(texts)
    predictor, *_ = models("bert", "questions", "float32", "keep")
    assert predictor.predict(kind(texts), kind(contexts)) == predictor.predict(texts, contexts)


def test_the_longest_text_of_each(models):
    for kind in KINDS:
        predictor, *_ = models(kind, "text", "float32", "keep")
        limit = 38 if ARCHITECTURES[kind].offset else 40
        assert predictor.max_length == limit
        assert isinstance(predictor.predict(["a b " * 100], max_length=limit)[0], Prediction)


@pytest.fixture
def hasty_threads():
    """Threads take turns as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("task", TASKS)
def test_threads_that_share_a_predictor(task, models, hasty_threads):
    predictor, *_ = models("bert", task, "float32", "keep")
    long = ["good film very bad the Anna London " * count for count in (1, 2, 3)]
    pairs = {"text": (None, long), "tokens": (None,), "questions": (long,)}[task]
    asked = [(length, pair) for length in (16, 28, 40) for pair in pairs]

    def ask(number):
        length, pair = asked[number % len(asked)]
        texts = ["bad film"] * 3 if task == "questions" else long
        logits = [values.tobytes() for values in predictor.logits(texts, pair, max_length=length)]
        return predictor.predict(texts, pair, max_length=length), logits

    expected = [ask(number) for number in range(len(asked))]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(300)))
    wrong = [number for number, one in enumerate(found) if one != expected[number % len(asked)]]
    assert not wrong


BEYOND = 3e38  # finite in a file, and not once it is multiplied or squared


def test_several_labels_for_a_text(tmp_path):
    model, tokenizer = save(tmp_path / "small", "bert", "text", problem_type="multi_label_classification")
    names = model.config.id2label
    predictor = load(tmp_path / "small")
    assert isinstance(predictor, MultiLabelPredictor)
    for text, found in zip(TEXTS, predictor.predict(TEXTS, max_length=38), strict=True):
        shares = 1 / (1 + np.exp(-torch_logits(model, tokenizer, text).astype(np.float64)))
        expected = sorted(
            ((share, names[at]) for at, share in enumerate(shares) if share >= 0.5), reverse=True
        )
        assert [one.label for one in found] == [label for _, label in expected]
        assert [one.score for one in found] == pytest.approx([share for share, _ in expected], abs=1e-5)
    assert [len(found) for found in predictor.predict(TEXTS, threshold=0)] == [3] * len(TEXTS)
    assert predictor.predict(["good"], threshold=np.float32(1)) == [[]]
    with pytest.raises(EngineError, match=r"threshold is 2, expected a probability from 0 to 1"):
        predictor.predict(["good"], threshold=2)


def test_a_regression_with_several_outputs(tmp_path):
    save(tmp_path / "small", "bert", "text", problem_type="regression")
    with pytest.raises(EngineError, match=r"predicts 3 values for a text, and a prediction has one; use the"):
        load(tmp_path / "small").predict(["good"])
    assert load(tmp_path / "small").logits(["good"])[0].shape == (3,)


def test_every_dtype_gives_about_the_same_logits(tmp_path):
    save(tmp_path / "small", "bert", "text")
    expected = np.stack(load(tmp_path / "small").logits(TEXTS))
    for dtype in dtypes():
        predictor = load(tmp_path / "small", dtype=dtype, threads=2)
        assert (predictor.encoder.dtype, predictor.encoder.threads) == (dtype, 2)
        assert np.abs(np.stack(predictor.logits(TEXTS)) - expected).max() < 0.1 * np.abs(expected).max()


def test_a_dtype_that_there_is_not(tmp_path):
    save(tmp_path / "small", "bert", "text")
    with pytest.raises(EngineError, match=r"float64"):
        load(tmp_path / "small", dtype="float64")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads_that_cannot_be(threads, tmp_path):
    save(tmp_path / "small", "bert", "text")
    with pytest.raises(EngineError, match=f"threads is {threads!r}"):
        load(tmp_path / "small", threads=threads)


def test_neither_torch_nor_transformers_is_needed(tmp_path):
    save(tmp_path / "small", "bert", "text")
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'fineprune', 'scipy']); "
        "from fineprune_runtime.loading import load; print(load(sys.argv[1]).predict(['good'])[0].label)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "small")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("class ")
