"""A model reads as many tokens as its run did, in the runtime and with torch."""

import json
from dataclasses import replace

import pytest
from runtime.models import renew, save

from fineprune.tasks.questions.prediction import answer
from fineprune.tasks.text.prediction import predict
from fineprune.tasks.tokens.prediction import predict_entities
from fineprune_runtime.loading import load
from fineprune_runtime.results import MAX_LENGTH, usual_length


@pytest.mark.parametrize("said", [None, True, 0, -4, "12", 12.0, [12]])
def test_a_length_of_the_run_that_is_none(said):
    assert usual_length({} if said is None else {MAX_LENGTH: said}, 7) == 7


@pytest.mark.parametrize("task", ["text", "tokens", "questions"])
@pytest.mark.parametrize("length", [12, 500])  # less and more than where nothing is said
def test_the_length_of_the_run_is_the_usual_one(task, length, tmp_path):
    """Texts are cut, or read in windows, as they were in training, with torch and without."""
    model, tokenizer = save(tmp_path / "a", "bert", task, max_position_embeddings=600)
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {MAX_LENGTH: length}))
    model.config.fineprune_max_length = length
    predictor = load(renew(tmp_path / "a"))
    assert predictor.usual == length
    texts = [" ".join(["good film a bad b"] * times) for times in (1, 110)]
    ask = {"text": predict, "tokens": predict_entities, "questions": answer}[task]
    pairs = {"questions": (["a film", "bad"], texts)}.get(task, (texts,))
    ours, theirs = predictor.predict(*pairs), ask(model, tokenizer, *pairs)
    assert ours == predictor.predict(*pairs, max_length=length)
    assert theirs == ask(model, tokenizer, *pairs, max_length=length)
    for one, other in zip(ours, theirs, strict=True):
        for found, expected in zip(*((one, other) if task == "tokens" else ([one], [other])), strict=True):
            assert found.score == pytest.approx(expected.score, abs=1e-5)
            assert replace(found, score=0.0) == replace(expected, score=0.0)
