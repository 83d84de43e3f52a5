"""Trainings that are not what was most likely meant are reported once; what cannot go on is refused."""

import warnings

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from fineprune import FinepruneError, FinepruneWarning, PruningConfig, PruningTrainer, finalize

MOVEMENT = PruningConfig("movement", density=0.2)
QUICK = {"save_strategy": "no", "eval_strategy": "no"}


class Stops(TrainerCallback):
    """Stops after four steps, as a budget of time would."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


class OwnLoss(PruningTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class DropsLoss(PruningTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        _, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class Weighted(PruningTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (2 * loss, outputs) if return_outputs else 2 * loss


def heard(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(entry.message) for entry in caught if entry.category is FinepruneWarning]


@pytest.mark.parametrize(
    ("kind", "said"), [(OwnLoss, True), (DropsLoss, True), (Weighted, False), (PruningTrainer, False)]
)
def test_a_host_that_leaves_out_part_of_the_loss(make_model, rows, teacher, tmp_path, tokenizer, kind, said):
    from transformers import DataCollatorWithPadding

    trainer = kind(
        model=make_model(),
        args=TrainingArguments(
            str(tmp_path), max_steps=8, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        pruning=PruningConfig("soft_movement", density=0.2),
        teacher=teacher,
    )
    texts = heard(trainer.train)
    parts = ["3 steps without the teacher", "3 optimizer steps without pruner.penalty()"] if said else []
    assert len(texts) == len(parts)
    assert all(part in text for part, text in zip(parts, texts, strict=True))


def test_a_training_that_ends_early_is_reported_at_its_end_alone(make_trainer, tmp_path):
    trainer = make_trainer(MOVEMENT, given={"callbacks": [Stops()]}, **QUICK)
    (text,) = heard(trainer.train)
    assert text.startswith("pruning is at step 4 of 12: the density is")
    assert text.endswith("instead of 0.2; train for all steps, or plan as many as the training takes")
    assert heard(lambda: trainer.save_model(str(tmp_path / "model"))) == []
    assert heard(lambda: finalize(trainer.model)) == []


def test_a_model_that_is_saved_untrained(make_trainer, tmp_path):
    trainer = make_trainer(MOVEMENT, **QUICK)
    (text,) = heard(lambda: trainer.save_model(str(tmp_path / "model")))
    assert "at step 0 of 12" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, True), ({"pruning": None}, False), ({"teacher": True}, False), ({"train_dataset": None}, False)],
    ids=str,
)
def test_a_trainer_without_pruning(make_model, rows, teacher, tmp_path, given, said):
    given = {"train_dataset": rows} | given | ({"teacher": teacher} if "teacher" in given else {})
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    texts = heard(lambda: PruningTrainer(model=make_model(), args=args, **given))
    assert len(texts) == said
    assert all(text.startswith("PruningTrainer without pruning= trains densely") for text in texts)


# -- resume -----------------------------------------------------------------------------------


@pytest.fixture
def begun(make_trainer):
    """The newest checkpoint of a training of four steps, with these settings."""

    def make(**settings):
        trainer = make_trainer(MOVEMENT, "begun", given={"callbacks": [Stops()]}, **settings)
        heard(trainer.train)
        return f"{trainer.args.output_dir}/checkpoint-4"

    return make


def others(rows, change):
    columns = {name: list(rows[name]) for name in rows.column_names}
    return Dataset.from_dict(change(columns))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda columns: columns | {"labels": [1 - label for label in columns["labels"]]}, "48 rows, "),
        (lambda columns: {name: values[::-1] for name, values in columns.items()}, "48 rows, "),
        (lambda columns: {name: values + values[:5] for name, values in columns.items()}, "53 rows, "),
        (lambda columns: {name: values[:16] for name, values in columns.items()}, "16 rows, "),
    ],
    ids=["labels", "order", "more", "fewer"],
)
def test_other_training_data_are_refused(begun, make_trainer, rows, change, part):
    checkpoint = begun()
    trainer = make_trainer(MOVEMENT, given={"train_dataset": others(rows, change)})
    with pytest.raises(FinepruneError) as error:
        trainer.train(resume_from_checkpoint=checkpoint)
    text = str(error.value)
    assert text.startswith(f"{checkpoint}: the training data changed since it was written (48 rows, ")
    assert f"there, {part}" in text
    assert text.endswith("resume with the same data, or start a new run")


def test_other_validation_data_are_reported(begun, make_trainer, rows):
    checkpoint = begun()
    trainer = make_trainer(MOVEMENT, given={"eval_dataset": rows.select(range(8))})
    (text,) = heard(lambda: trainer.train(resume_from_checkpoint=checkpoint))
    assert "the validation data changed since it was written (12 rows, " in text


@pytest.mark.parametrize(
    ("first", "then", "match"),
    [
        ({}, {"optim": "adafactor"}, "has the state of AdamW, this run.s optimizer is Adafactor; set"),
        ({}, {"optim": "sgd"}, "has the state of AdamW, this run's optimizer is SGD"),
        ({"save_only_model": True}, {}, "has no optimizer.pt .save_only_model.*start a new one"),
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_that_cannot_go_on_is_refused(begun, make_trainer, first, then, match):
    checkpoint = begun(**first)
    with pytest.raises(FinepruneError, match=match):
        make_trainer(MOVEMENT, **then).train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rate": 2e-2}, "(learning_rate: 0.01 there, 0.02 now); learning rates and decay stay"),
        ({"lr_scheduler_type": "cosine"}, "(lr_scheduler_type: 'linear' there, 'cosine' now)"),
        ({"optim": "adamw_torch"}, None),  # the same, slower
        ({"eval_steps": 4, "logging_steps": 5}, None),
    ],
    ids=str,
)
def test_other_settings_are_reported(begun, make_trainer, settings, said):
    checkpoint = begun()
    trainer = make_trainer(MOVEMENT, **settings)
    texts = heard(lambda: trainer.train(resume_from_checkpoint=checkpoint))
    assert len(texts) == (said is not None)
    assert all(said in text for text in texts)


def test_a_checkpoint_of_before_there_were_fingerprints(begun, make_trainer, monkeypatch):
    from fineprune.training.host import sealing

    own = sealing.run_of
    older = ("data", "optimizer", "settings")
    monkeypatch.setattr(
        sealing, "run_of", lambda folder: {k: v for k, v in own(folder).items() if k not in older}
    )
    trainer = make_trainer(MOVEMENT)
    assert heard(lambda: trainer.train(resume_from_checkpoint=begun())) == []
    assert trainer.state.global_step == 12
    assert torch.isfinite(trainer.pruner.targets[0].weight).all()
