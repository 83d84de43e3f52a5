"""The teacher: where it is found, what does not fit, answers kept on disk, and a recipe's run with one."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import fineprune
from fineprune import Distillation, FinepruneError, PruningConfig
from fineprune.training.distillation.teacher import check_fit, load_teacher
from fineprune.training.run import train as run_module
from fineprune.training.run.evaluate import evaluate_run
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MOVEMENT = PruningConfig("movement", density=0.2)


def refused(call, *parts: str) -> None:
    """The call fails with one line that has these parts."""
    with pytest.raises(FinepruneError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def losses(trainer) -> list[tuple[float, float]]:
    return [
        (line["loss"], line["distillation"]) for line in trainer.state.log_history if "distillation" in line
    ]


def other(config, kind=BertForSequenceClassification):
    torch.manual_seed(8)
    return kind(config)


# -- where it is found ------------------------------------------------------------------------


def test_a_folder_a_run_folder_and_a_compact_folder(make_trainer, teacher, tokenizer, tmp_path):
    with torch.no_grad():  # pruned, or there is nothing to compact
        for block in teacher.bert.encoder.layer:
            block.intermediate.dense.weight[:, 2:] = 0
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.save_pretrained(tmp_path / "run" / "model")
    tokenizer.save_pretrained(tmp_path / "run" / "model")
    fineprune.save_compact(teacher, tmp_path / "small", tokenizer=tokenizer, values="float32")
    for place in (tmp_path / "run", str(tmp_path / "run" / "model"), tmp_path / "small"):
        torch.manual_seed(0)
        model, words, source = load_teacher(place)
        assert source == place
        assert float(torch.rand(1)) == pytest.approx(0.4963, abs=1e-4)  # the generator was not used
        assert words.get_vocab() == tokenizer.get_vocab()
        for name, value in model.named_parameters():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, state[name], rtol=0.1, atol=0.1)
    found = []
    for source in (tmp_path / "run", teacher):
        trainer = make_trainer(None, given={"teacher": source})
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1]
    assert len(found[0]) == 12


def test_what_is_no_teacher(tmp_path, pretrained):
    (tmp_path / "file").write_text("")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("")
    refused(lambda: load_teacher(tmp_path / "nowhere"), "no such folder", "run folder")
    refused(lambda: load_teacher(tmp_path / "file"), "is a file")
    refused(lambda: load_teacher(tmp_path / "begun"), "not finished", "--resume")
    refused(lambda: load_teacher("not-a-model-anywhere"), "from the hub")


# -- what does not fit ------------------------------------------------------------------------


def test_heads_and_labels_must_be_the_same(make_model, teacher):
    student = make_model()
    assert check_fit(student, teacher, "teacher") == "texts"
    refused(lambda: check_fit(student, student, "teacher"), "deepcopy")
    tokens = BertForTokenClassification(student.config)
    refused(
        lambda: check_fit(student, tokens, "teacher runs/t"), "teacher runs/t: is a BertForToken", "`pruning`"
    )
    refused(lambda: check_fit(student, BertModel(student.config), "teacher"), "BertModel and answers nothing")
    refused(lambda: check_fit(BertModel(student.config), teacher, "teacher"), "BertModel cannot be distilled")
    many = make_model(problem_type="multi_label_classification")
    refused(lambda: check_fit(many, teacher, "teacher"), "several labels")
    refused(lambda: check_fit(student, make_model(num_labels=3), "teacher"), "has 3 labels, the model has 2")
    refused(lambda: check_fit(student, make_model(num_labels=1), "teacher"), "answers values")
    names = [make_model(id2label=dict(enumerate(names))) for names in (("neg", "pos"), ("pos", "neg"))]
    assert check_fit(names[0], teacher, "teacher") == check_fit(student, names[0], "teacher") == "texts"
    refused(
        lambda: check_fit(names[0], names[1], "teacher"), "label 0 is 'pos' for it and 'neg' for the model"
    )


def test_vocabularies_must_be_the_same(make_model, make_trainer, tokenizer, teacher, tmp_path):
    student = make_model()
    refused(lambda: check_fit(student, make_model(vocab_size=12), "teacher"), "has 12 tokens, the model's 11")
    words = tokenizer.get_vocab()
    swapped = BertTokenizer(vocab=words | {"good": words["bad"], "bad": words["good"]})
    assert check_fit(student, teacher, "teacher", (tokenizer, BertTokenizer(vocab=words))) == "texts"
    refused(
        lambda: check_fit(student, teacher, "teacher", (tokenizer, swapped)),
        "'bad' is id 5 for it and id 6 for the model",
        "give the rows the texts in its own tokens, too: columns teacher_input_ids",
    )
    tokens = [BertForTokenClassification(make_model().config) for _ in range(2)]
    refused(
        lambda: check_fit(*tokens, "teacher", (tokenizer, swapped)), "need one vocabulary: make both from"
    )
    teacher.save_pretrained(tmp_path / "swapped")
    swapped.save_pretrained(tmp_path / "swapped")
    refused(lambda: make_trainer(MOVEMENT, given={"teacher": tmp_path / "swapped"}), "'bad' is id 5 for it")


def test_the_teacher_must_take_texts_as_long(make_model, make_trainer):
    """The longest text of the rows has 7 words, so 9 tokens."""
    make_trainer(None, given={"teacher": make_model(max_position_embeddings=9)})
    short = make_model(max_position_embeddings=8)
    refused(lambda: make_trainer(None, given={"teacher": short}), "at most 8 tokens", "has 9", "max_length=8")


def test_a_roberta_takes_fewer_tokens_than_it_has_positions():
    """With a padding id of 1 the positions count from 2, so that 10 of them are for 8 tokens."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=11, max_position_embeddings=10, pad_token_id=1, **sizes)
    student, teacher = (RobertaForSequenceClassification(config) for _ in range(2))
    assert check_fit(student, teacher, "teacher", longest=8) == "texts"
    refused(
        lambda: check_fit(student, teacher, "teacher", longest=9), "at most 8 tokens", "training.max_length=8"
    )


def test_arguments_of_a_wrong_kind_are_refused(make_trainer, teacher):
    refused(lambda: make_trainer(None, given={"distillation": Distillation()}), "needs a teacher")
    refused(lambda: make_trainer(None, given={"teacher_logits": "x"}), "needs a teacher")
    refused(lambda: make_trainer(None, given={"teacher": 3}), "teacher=3: must be a model, a folder")
    wrong = {"teacher": teacher, "distillation": {"alpha": 1}}
    refused(lambda: make_trainer(None, given=wrong), "distillation={'alpha': 1}", "fineprune.Distillation")


# -- answers kept on disk ---------------------------------------------------------------------


def of_head(head, make_model, rows, tokenizer):
    """A student, a teacher, rows and collator for a head. Labels are of no sense, and do not repeat."""
    kind, collate, labels = {
        "texts": (BertForSequenceClassification, DataCollatorWithPadding(tokenizer), None),
        "values": (BertForSequenceClassification, DataCollatorWithPadding(tokenizer), "values"),
        "tokens": (BertForTokenClassification, DataCollatorForTokenClassification(tokenizer), "tokens"),
        "spans": (BertForQuestionAnswering, DataCollatorWithPadding(tokenizer), "spans"),
    }[head]
    columns = rows.to_dict()
    widths = [len(ids) for ids in columns["input_ids"]]
    if labels == "values":
        columns["labels"] = [index / 7 for index in range(len(widths))]
    elif labels == "tokens":
        columns["labels"] = [[-100, *(index % 2 for index in range(n - 2)), -100] for n in widths]
    elif labels == "spans":
        del columns["labels"]
        columns |= {"start_positions": [1 for n in widths], "end_positions": [n - 2 for n in widths]}
    config = make_model(**NO_DROPOUT, num_labels=1 if head == "values" else 2).config
    torch.manual_seed(7)
    return kind(config), other(config, kind), Dataset.from_dict(columns), collate


def silent(input_ids=None, attention_mask=None, token_type_ids=None):
    raise AssertionError("the teacher was asked")


@pytest.mark.parametrize("head", ["texts", "values", "tokens", "spans"])
@pytest.mark.parametrize("plain", [False, True], ids=["Dataset", "list"])
def test_kept_answers_give_the_same_losses(make_trainer, make_model, rows, tokenizer, tmp_path, head, plain):
    found = []
    for folder in (None, tmp_path / "logits"):
        student, teacher, data, collate = of_head(head, make_model, rows, tokenizer)
        data = list(data) if plain else data.add_column("note", ["not for models"] * 48)
        given = {"model": student, "teacher": teacher, "teacher_logits": folder, "data_collator": collate}
        given |= {"train_dataset": data, "eval_dataset": data}
        trainer = make_trainer(MOVEMENT, f"{folder is None}", given=given, save_strategy="no", optim="sgd")
        if folder is not None:
            trainer.train()
            teacher.forward = silent  # a second run has all it needs on disk
            student = of_head(head, make_model, rows, tokenizer)[0]
            again = make_trainer(MOVEMENT, "again", given=given | {"model": student}, optim="sgd")
            again.train()
            assert losses(again) == losses(trainer)
        else:
            trainer.train()
        found.append(losses(trainer))
    assert len(found[0]) == 12
    for live, kept in zip(*found, strict=True):
        assert kept == pytest.approx(live, rel=1e-5, abs=1e-5)
    (file,) = (tmp_path / "logits").iterdir()
    lines = {"texts": 48 * 2, "values": 48, "tokens": 2, "spans": 2}[head]
    if head in ("tokens", "spans"):
        lines *= sum(len(ids) for ids in rows["input_ids"])
    overhead = 48 * 8 + 600  # the lengths, and the header
    assert lines * 4 < file.stat().st_size < lines * 4 + overhead


def test_another_teacher_other_rows_or_a_damaged_file_make_them_anew(
    make_trainer, make_model, teacher, rows, tmp_path, caplog
):
    def train(**given):
        given = {"teacher": teacher, "teacher_logits": tmp_path / "logits", "model": make_model()} | given
        trainer = make_trainer(None, given=given, max_steps=2, save_strategy="no", eval_strategy="no")
        with caplog.at_level(logging.INFO, logger="fineprune"):
            trainer.train()
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return losses(trainer), lines

    first, lines = train()
    assert lines == ["the teacher's answers to 48 rows take 0.0 MB of disk"]
    assert train() == (first, [])
    (file,) = (tmp_path / "logits").iterdir()
    content = file.read_bytes()
    for damaged in (content[:-9], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], b""):
        file.write_bytes(damaged)
        again, lines = train()
        assert again == first
        assert "the teacher answers again" in lines[0]
        assert file.read_bytes() == content
    assert train(teacher=make_model())[0] != first
    assert train(train_dataset=rows.select(range(40)))[0] != first
    assert len(list((tmp_path / "logits").iterdir())) == 3
    assert train() == (first, [])


def test_a_disk_that_takes_nothing_is_one_line(make_trainer, teacher, tmp_path):
    (tmp_path / "logits").write_text("a file, where a folder should be")
    trainer = make_trainer(None, given={"teacher": teacher, "teacher_logits": tmp_path / "logits"})
    refused(trainer.train, "0.0 MB) cannot be written", "another folder")


# -- the run of a recipe ----------------------------------------------------------------------


def logs(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.fixture
def taught(files, tmp_path):
    """A teacher's run in `teacher/`, and the recipe of a student of it."""
    dense = replace(files.recipe(), pruning=None)
    run_recipe(dense, tmp_path / "teacher", progress=False)
    section = {"teacher": str(tmp_path / "teacher"), "alpha": 0.5, "temperature": 3, "cache": True}
    values = files.recipe().to_dict() | {"distillation": section}
    return Recipe.from_dict(values)


def test_teacher_student_evaluation(taught, tmp_path):
    results = run_recipe(taught, tmp_path / "student", progress=False)
    assert results["recipe"]["distillation"]["temperature"] == 3.0
    assert results["density"] == 0.25
    assert all(line["distillation"] > 0 for line in logs(tmp_path / "student"))
    shutil.rmtree(tmp_path / "teacher")
    assert evaluate_run(tmp_path / "student") == pytest.approx(results["scores"])
    names = sorted(path.name for path in (tmp_path / "student").iterdir())
    assert names == ["metrics.jsonl", "model", "recipe.yaml", "results.json", "weights.npz"]
    assert Recipe.load(tmp_path / "student" / "recipe.yaml") == taught


def test_a_killed_student_goes_on_with_the_answers_that_are_there(taught, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_recipe(taught, whole, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_recipe(taught, killed, progress=False)
    (file,) = (killed / "teacher_logits").iterdir()
    before = file.stat().st_mtime_ns
    shutil.rmtree(killed / "checkpoints" / "checkpoint-12")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        results = run_recipe(taught, killed, resume=True, progress=False)
    assert results["resumed_from_step"] == 8
    assert file.stat().st_mtime_ns == before
    assert logs(killed) == logs(whole)
    weights = [folder / "model" / "model.safetensors" for folder in (whole, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_named_folder_keeps_the_answers_and_a_wrong_teacher_leaves_nothing(taught, tmp_path):
    section = replace(taught.distillation, cache=str(tmp_path / "kept"))
    run_recipe(replace(taught, distillation=section, pruning=None), tmp_path / "student", progress=False)
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1
    wrong = replace(taught, distillation=replace(section, teacher=str(tmp_path / "nowhere")))
    refused(lambda: run_recipe(wrong, tmp_path / "wrong", progress=False), "nowhere", "no such folder")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"alpha": 0.5}, "teacher is missing"),
        ({"teacher": 3}, "distillation.teacher=3"),
        ({"teacher": "t", "alpha": 2}, "distillation.alpha=2"),
        ({"teacher": "t", "temperature": -1}, "distillation.temperature=-1"),
        ({"teacher": "t", "cache": 1}, "distillation.cache=1"),
        ({"teacher": "t", "temp": 1}, "did you mean temperature"),
        ("runs/teacher", "expected a mapping"),
    ],
)
def test_a_wrong_section_is_refused(files, section, part):
    refused(lambda: Recipe.from_dict(files.recipe().to_dict() | {"distillation": section}), part)
