"""A teacher with a tokenizer of its own: the columns of its tokens, and trainings with it.

The teacher of most tests has the words of the student in another order, and its embeddings in that order, so
that it answers exactly as the one that reads the student's ids.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import BertForSequenceClassification, BertForTokenClassification, BertTokenizer

from fineprune import Distillation, FinepruneError, PruningConfig
from fineprune.training.distillation.row_lengths import lengths_of
from fineprune.training.distillation.teacher_tokens import (
    INPUTS,
    TeacherCollator,
    reads_otherwise,
    teacher_columns,
    with_teacher_columns,
)
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

MOVEMENT = PruningConfig("movement", density=0.2)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def reversed_words(tokenizer):
    """The same words with the ids 10 to 0."""
    last = len(tokenizer) - 1
    return BertTokenizer(vocab={word: last - index for word, index in tokenizer.get_vocab().items()})


@pytest.fixture
def reversed_teacher(teacher):
    """The teacher for these ids."""
    return with_reversed_ids(copy.deepcopy(teacher))


def with_reversed_ids(model):
    with torch.no_grad():
        words = model.bert.embeddings.word_embeddings.weight
        words.copy_(words.flip(0))
    model.config.pad_token_id = len(words) - 1
    return model


def losses(trainer) -> list[tuple[float, float]]:
    lines = trainer.state.log_history
    return [(line["loss"], line["distillation"]) for line in lines if "distillation" in line]


def in_reversed_words(rows):
    """The rows with the ids that the reversed words have: 10 less the student's."""
    ids = [[10 - one for one in row] for row in rows["input_ids"]]
    return with_teacher_columns(rows, rows.remove_columns("input_ids").add_column("input_ids", ids))


# -- the columns ------------------------------------------------------------------------------


def test_the_columns_stand_beside_the_students(teacher):
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3]], "labels": [0, 1]})
    theirs = {"input_ids": [[7], [8, 9, 7]], "attention_mask": [[1], [1, 1, 1]], "labels": [0, 1]}
    both = with_teacher_columns(rows, Dataset.from_dict(theirs))
    assert both.column_names == ["input_ids", "labels", "teacher_input_ids", "teacher_attention_mask"]
    assert both["teacher_input_ids"][:] == [[7], [8, 9, 7]]
    for kind in (both, list(both)):
        assert sorted(teacher_columns(kind, teacher)) == ["teacher_attention_mask", "teacher_input_ids"]
        assert lengths_of(kind, "teacher_input_ids") == [1, 3]
    assert teacher_columns(rows, teacher) == teacher_columns([], teacher) == ()
    noted = both.add_column("teacher_note", ["a", "b"])  # nothing that its forward pass takes
    assert teacher_columns(noted, teacher) == teacher_columns(both, teacher)


def test_each_side_is_padded_to_its_own_longest_text():
    rows = [
        {"input_ids": [1, 2], "teacher_input_ids": [7], "teacher_attention_mask": [1]},
        {"input_ids": [3, 4], "teacher_input_ids": [8, 9], "teacher_attention_mask": [1, 1]},
    ]

    def own(rows):
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows]), "keys": set(rows[0])}

    columns = ("teacher_input_ids", "teacher_attention_mask")
    batch = TeacherCollator(own, columns, 5)(rows)
    assert batch["keys"] == {"input_ids"}
    assert {name: value.tolist() for name, value in batch[INPUTS].items()} == {
        "input_ids": [[7, 5], [8, 9]],
        "attention_mask": [[1, 0], [1, 1]],
    }
    assert TeacherCollator(own, columns, None)(rows)[INPUTS]["input_ids"].tolist() == [[7, 0], [8, 9]]
    assert set(TeacherCollator(own, columns, 5)([{"input_ids": [1]}])) == {"input_ids", "keys"}


def test_two_tokenizers_are_compared_by_their_ids(tokenizer, reversed_words):
    assert reads_otherwise(tokenizer, reversed_words)
    assert not reads_otherwise(tokenizer, BertTokenizer(vocab=tokenizer.get_vocab()))
    assert not reads_otherwise(tokenizer, None)


# -- trainings --------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("plain", [False, True], ids=["Dataset", "list"])
def test_it_teaches_what_a_teacher_of_the_students_tokens_does(
    make_trainer, make_model, teacher, reversed_teacher, rows, tmp_path, stored, plain
):
    theirs = in_reversed_words(rows)
    found = []
    for model, data in ((teacher, rows), (reversed_teacher, theirs)):
        data = list(data) if plain else data
        given = {"model": make_model(**NO_DROPOUT), "teacher": model, "train_dataset": data}
        given |= {"eval_dataset": data, "teacher_logits": tmp_path / "logits" if stored else None}
        trainer = make_trainer(MOVEMENT, given=given, save_strategy="no")
        trainer.train()
        found.append(losses(trainer))
    assert len(found[0]) == 12
    assert found[0] == found[1]


def test_without_labels_it_evaluates_too(make_trainer, reversed_teacher, rows):
    data = in_reversed_words(rows)
    unlabeled = data.remove_columns("labels").select(range(5))
    trainer = make_trainer(None, given={"teacher": reversed_teacher, "train_dataset": data})
    assert trainer.predict(unlabeled).predictions.shape == (5, 2)


def test_its_own_length_counts(make_trainer, make_model, rows):
    data = in_reversed_words(rows)
    short = make_model(max_position_embeddings=8)
    with pytest.raises(FinepruneError, match="takes at most 8 tokens, and the longest training text has 9"):
        make_trainer(None, given={"teacher": short, "train_dataset": data})


@pytest.mark.parametrize("config", [Distillation(hidden=1.0), Distillation(graft=0.5)])
def test_hidden_states_and_blocks_belong_to_tokens(make_trainer, reversed_teacher, rows, config):
    given = {"teacher": reversed_teacher, "train_dataset": in_reversed_words(rows), "distillation": config}
    name = "hidden" if config.hidden else "graft"
    with pytest.raises(FinepruneError, match=f"teacher_input_ids.* leave distillation's {name} out"):
        make_trainer(MOVEMENT, given=given)


def test_answers_for_tokens_belong_to_them_too(make_trainer, make_model, rows):
    student, teacher = (BertForTokenClassification(make_model().config) for _ in range(2))
    given = {"model": student, "teacher": teacher, "train_dataset": in_reversed_words(rows)}
    with pytest.raises(FinepruneError, match="the model answers tokens, which belong to the student's"):
        make_trainer(MOVEMENT, given=given)


def test_a_loss_of_several_passes_is_refused(make_trainer, reversed_teacher, rows):
    data = in_reversed_words(rows)
    trainer = make_trainer(None, given={"teacher": reversed_teacher, "train_dataset": data})
    trainer.compute_loss_func = lambda outputs, labels, **_: trainer.model(
        trainer.model.dummy_inputs["input_ids"]
    ).logits.sum()
    with pytest.raises(FinepruneError, match="ran the BertForSequenceClassification 2 times"):
        trainer.train()


# -- recipes ----------------------------------------------------------------------------------


def logged(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("loss", "distillation")
    return [{name: line[name] for name in kept} for line in lines if "loss" in line]


@pytest.mark.parametrize("cache", [False, True])
def test_a_recipe_reads_its_texts_with_both_tokenizers(files, reversed_words, tmp_path, cache):
    """The same teacher, once with the student's words, once with the reversed ones."""
    run_recipe(replace(files.recipe(), pruning=None), tmp_path / "teacher", progress=False)
    model = BertForSequenceClassification.from_pretrained(tmp_path / "teacher" / "model")
    with_reversed_ids(model).save_pretrained(tmp_path / "reversed")
    reversed_words.save_pretrained(tmp_path / "reversed")
    results = []
    for name in ("teacher", "reversed"):
        section = {"teacher": str(tmp_path / name), "alpha": 0.5, "cache": cache}
        recipe = Recipe.from_dict(files.recipe().to_dict() | {"distillation": section})
        results.append(run_recipe(recipe, tmp_path / f"of-{name}", progress=False))
    first, second = (logged(tmp_path / f"of-{name}") for name in ("teacher", "reversed"))
    assert len(first) >= 12
    assert first == second
    assert results[0]["teacher_score"] == results[1]["teacher_score"]


def test_texts_are_cut_to_what_the_teacher_takes(files, reversed_words, make_model, tmp_path):
    make_model(max_position_embeddings=5, id2label={0: "neg", 1: "pos"}).save_pretrained(tmp_path / "short")
    reversed_words.save_pretrained(tmp_path / "short")
    section = {"teacher": str(tmp_path / "short"), "alpha": 0.5}
    recipe = Recipe.from_dict(files.recipe().to_dict() | {"distillation": section})
    results = run_recipe(recipe, tmp_path / "run", progress=False)
    assert 0 <= results["teacher_score"] <= 1  # its score is of texts as it reads them, too
    assert all(line["distillation"] > 0 for line in logged(tmp_path / "run"))
