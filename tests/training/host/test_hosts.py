"""The same scenarios with each host: transformers, sentence-transformers and trl."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

import fineprune
from fineprune import Distillation, FinepruneError, PruningConfig, PruningTrainer, pruning_trainer, summary

STEPS = 8
HOSTS = ["transformers", "sentence", "cross", "sft"]
TAUGHT = ["transformers", "cross", "sft"]
MOVEMENT = PruningConfig("movement", density=0.25, warmup=1, cooldown=2)
SOFT = PruningConfig("soft_movement", penalty=3.0, warmup=0, cooldown=2, density=0.5)
SETTINGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "logging_steps": 1,
    "seed": 3,
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "use_cpu": True,
    "bf16": False,
}
TEXTS = ["good film", "bad film", "very good a", "very bad b", "a film", "b film very", "good", "bad"]
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]


class Kit(SimpleNamespace):
    """A host: `base`, `arguments` (its class), `model(**settings)`, `given()` and `opened(folder)`."""

    def trainer(self, folder: Path, pruning: Any = MOVEMENT, model: Any = None, **values: Any) -> Any:
        own = {name: values.pop(name) for name in list(values) if name in OWN}
        arguments = self.arguments(str(folder), **(SETTINGS | self.settings | values))
        set_seed(arguments.seed)
        given = self.given() | own
        model = self.model() if model is None else model
        trainer = pruning_trainer(self.base)(model=model, args=arguments, pruning=pruning, **given)
        trainer.remove_callback(PrinterCallback)
        return trainer


OWN = {"train_dataset", "teacher", "distillation", "teacher_logits", "callbacks", "optimizers", "check_masks"}


@pytest.fixture(scope="module")
def kits(tmp_path_factory, tokenizer, bert_config):
    """A kit for each host, by name, made when it is asked for."""
    folder = tmp_path_factory.mktemp("hosts")
    labels = [index % 2 for index in range(32)]
    texts = [TEXTS[index % 8] for index in range(32)]
    others = [TEXTS[(index * 3 + 1) % 8] for index in range(32)]

    def transformers():
        rows = Dataset.from_dict({**tokenizer(texts), "labels": labels})

        def model(**settings):
            torch.manual_seed(7)
            return BertForSequenceClassification(bert_config(**(QUIET | settings)))

        return Kit(
            base=Trainer,
            arguments=TrainingArguments,
            settings={},
            model=model,
            opened=AutoModelForSequenceClassification.from_pretrained,
            given=lambda: {
                "train_dataset": rows,
                "eval_dataset": rows.select(range(8)),
                "data_collator": DataCollatorWithPadding(tokenizer),
            },
        )

    def sentence():
        from sentence_transformers import (
            SentenceTransformer,
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )

        torch.manual_seed(7)
        BertModel(bert_config(**QUIET)).save_pretrained(folder / "body")
        tokenizer.save_pretrained(folder / "body")
        rows = Dataset.from_dict({"one": texts, "two": others, "score": [float(label) for label in labels]})
        return Kit(
            base=SentenceTransformerTrainer,
            arguments=SentenceTransformerTrainingArguments,
            settings={},
            model=lambda: SentenceTransformer(str(folder / "body"), device="cpu"),
            opened=lambda place: SentenceTransformer(str(place), device="cpu"),
            given=lambda: {"train_dataset": rows, "eval_dataset": rows.select(range(8))},
        )

    def cross():
        from sentence_transformers.cross_encoder import (
            CrossEncoder,
            CrossEncoderTrainer,
            CrossEncoderTrainingArguments,
        )

        torch.manual_seed(7)
        BertForSequenceClassification(bert_config(num_labels=1, **QUIET)).save_pretrained(folder / "head")
        tokenizer.save_pretrained(folder / "head")
        rows = Dataset.from_dict({"one": texts, "two": others, "label": [float(label) for label in labels]})
        return Kit(
            base=CrossEncoderTrainer,
            arguments=CrossEncoderTrainingArguments,
            settings={},
            model=lambda: CrossEncoder(str(folder / "head"), device="cpu"),
            opened=lambda place: CrossEncoder(str(place), device="cpu"),
            given=lambda: {"train_dataset": rows, "eval_dataset": rows.select(range(8))},
        )

    def sft():
        from trl import SFTConfig, SFTTrainer

        words = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer._tokenizer, pad_token="[PAD]", eos_token="[SEP]", unk_token="[UNK]"
        )
        # All rows have four tokens: then each micro-batch has the same number of them.
        ids = [[5 + (index + step * (index % 3 + 1)) % 6 for step in range(4)] for index in range(32)]
        rows = Dataset.from_dict({"input_ids": ids, "labels": ids})

        def model(**settings):
            torch.manual_seed(7)
            sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 11}
            sizes |= {"intermediate_size": 16, "initializer_range": 0.5, "max_position_embeddings": 32}
            return LlamaForCausalLM(LlamaConfig(**(sizes | {"tie_word_embeddings": False} | settings)))

        return Kit(
            base=SFTTrainer,
            arguments=SFTConfig,
            settings={"gradient_checkpointing": False, "dataset_kwargs": {"skip_prepare_dataset": True}},
            model=model,
            opened=AutoModelForCausalLM.from_pretrained,
            given=lambda: {
                "train_dataset": rows,
                "eval_dataset": rows.select(range(8)),
                "processing_class": words,
            },
        )

    makers = {"transformers": transformers, "sentence": sentence, "cross": cross, "sft": sft}
    made: dict[str, Kit] = {}

    def kit(name: str) -> Kit:
        if name not in made:
            made[name] = makers[name]()
        return made[name]

    return kit


@pytest.fixture
def kit(kits, request):
    """The kit of the host that the test names."""
    return kits(request.param)


def each(hosts=HOSTS):
    return pytest.mark.parametrize("kit", hosts, indirect=True)


def same_tensors(one: Any, other: Any) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def lines(trainer: Any) -> list[dict[str, float]]:
    """The log without times, and without the tokens that trl counts from each start of the program on."""
    return [
        {
            name: value
            for name, value in line.items()
            if not name.endswith(("runtime", "per_second", "num_tokens"))
        }
        for line in trainer.state.log_history
        if "train_runtime" not in line
    ]


# -- the class --------------------------------------------------------------------------------


@each()
def test_the_class_of_a_host(kit):
    made = pruning_trainer(kit.base)
    assert made is pruning_trainer(kit.base) is pruning_trainer(made) is fineprune.pruning_trainer(kit.base)
    assert issubclass(made, kit.base)
    assert made.__name__ == f"Pruning{kit.base.__name__}"
    assert pickle.loads(pickle.dumps(made)) is made
    assert copy.deepcopy(made) is made


def test_the_class_of_transformers_trainer_and_what_is_none():
    assert pruning_trainer(Trainer) is PruningTrainer
    for wrong in (TrainingArguments, "Trainer", None):
        with pytest.raises(FinepruneError, match="a subclass of it"):
            pruning_trainer(wrong)


# -- training ---------------------------------------------------------------------------------


@each()
def test_training_prunes_logs_evaluates_and_saves_an_ordinary_model(kit, tmp_path):
    trainer = kit.trainer(tmp_path / "out", eval_strategy="steps", eval_steps=4)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.pruner.density == pytest.approx(0.25, abs=0.01)
    training, evaluation = (
        [line for line in lines(trainer) if kind in line] for kind in ("loss", "eval_loss")
    )
    assert len(training) == STEPS
    assert len(evaluation) == 2
    assert training[0]["density"] == 1.0
    assert training[-1]["density"] == evaluation[-1]["density"] == trainer.pruner.density
    changed = {
        name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert any(name.endswith("weight.0.scores") for name in changed)
    assert any(name.endswith("weight.original") for name in changed)
    trainer.save_model(str(tmp_path / "model"))
    assert summary(kit.opened(tmp_path / "model")).kept == summary(trainer.model).kept
    groups = trainer.optimizer.param_groups
    (scores,) = [group for group in groups if group["initial_lr"] == 3e-2]
    assert {id(entry) for entry in scores["params"]} == {
        id(target.scores) for target in trainer.pruner.targets
    }
    assert scores["weight_decay"] == 0


@each()
@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
def test_two_micro_batches_are_one_batch(kit, tmp_path, taught):
    """With a penalty, and a teacher where there can be one: each counts once in an optimizer step."""
    if taught and kit.base.__name__ == "SentenceTransformerTrainer":
        return
    settings = {"optim": "sgd", "max_steps": 4, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    trainers = []
    for batch, parts in ((8, 1), (4, 2)):
        taught_by = {"teacher": other_model(kit), "distillation": Distillation(0.5)} if taught else {}
        trainer = kit.trainer(
            tmp_path / f"{batch}",
            SOFT,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=parts,
            **settings,
            **taught_by,
        )
        if kit.base.__name__ == "SentenceTransformerTrainer":
            trainer.loss = pairs_mean(trainer.model)
        trainer.train()
        trainers.append(trainer)
    names = ("loss", "penalty", "density", *(["distillation"] if taught else []))
    for ours, theirs in zip(*map(lines, trainers), strict=True):
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5)
    assert any(line["penalty"] > 0.1 for line in lines(trainers[0]))
    one, two = (trainer.model.state_dict() for trainer in trainers)
    for name in one:
        torch.testing.assert_close(one[name].float(), two[name].float(), rtol=1e-4, atol=1e-5)


def pairs_mean(model):
    """A loss that is a mean over rows; the default one compares the rows of a batch."""
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    return CosineSimilarityLoss(model)


def test_trl_weighs_all_tokens_of_a_step_alike(kits, tmp_path):
    """As it does by itself, also where micro-batches have other numbers of labels."""
    kit = kits("sft")
    rows = kit.given()["train_dataset"].select(range(8)).to_dict()
    rows["labels"][0] = [-100, -100, -100, 5]
    own = {"train_dataset": Dataset.from_dict(rows)}
    losses = []
    for batch, parts in ((8, 1), (4, 2)):
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        trainer = kit.trainer(tmp_path / f"{batch}", max_steps=4, optim="sgd", **sizes, **own)
        trainer.train()
        losses.append([line["loss"] for line in lines(trainer)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# -- checkpoints ------------------------------------------------------------------------------


@each()
def test_killed_and_resumed_is_the_uninterrupted_run_bit_for_bit(kit, tmp_path, stop_after):
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 2}
    whole = kit.trainer(tmp_path / "whole", **settings)
    whole.train()
    killed = kit.trainer(tmp_path / "killed", callbacks=[stop_after(7)], **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    for step in (6, 2):  # in the second epoch, and in the first
        resumed = kit.trainer(tmp_path / "killed", **settings)
        torch.rand(5)  # the generator's state is the checkpoint's
        resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / f"checkpoint-{step}"))
        same_tensors(whole.model, resumed.model)
        assert lines(whole) == lines(resumed)


@each()
def test_the_best_state_at_the_end(kit, tmp_path, every):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    states = {}
    trainer = kit.trainer(tmp_path / "out", save_total_limit=2, **settings)
    trainer.add_callback(every(lambda step: states.update({step: copy.deepcopy(trainer.model.state_dict())})))
    loop = trainer.evaluation_loop

    def scored(*args, **kwargs):
        output = loop(*args, **kwargs)
        output.metrics["eval_score"] = {2: 0.9, 7: 0.5}.get(trainer.state.global_step, 0.0)
        return output

    trainer.evaluation_loop = scored
    trainer.train()
    assert trainer.state.best_global_step == 7  # step 2 is better, and not pruned
    best = states[7]
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, best[name]), name
    assert not all(torch.equal(best[name], states[8][name]) for name in best)
    assert summary(kit.opened(tmp_path / "out" / "checkpoint-7")).kept == summary(trainer.model).kept


OPEN = """
import sys
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification

models = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]), SentenceTransformer(sys.argv[2])
assert "fineprune" not in sys.modules
torch.save([dict(model.state_dict()) for model in models], sys.argv[3])
"""


def test_checkpoints_open_in_a_process_that_never_heard_of_pruning(kits, tmp_path):
    trainers = []
    for name in ("transformers", "sentence"):
        trainers.append(kits(name).trainer(tmp_path / name, save_strategy="steps", save_steps=STEPS))
        trainers[-1].train()
    places = [str(tmp_path / name / f"checkpoint-{STEPS}") for name in ("transformers", "sentence")]
    command = [sys.executable, "-c", OPEN, *places, str(tmp_path / "states")]
    subprocess.run(command, check=True, capture_output=True)
    for trainer, state in zip(trainers, torch.load(tmp_path / "states", weights_only=True), strict=True):
        folded = fineprune.finalize(trainer.model).state_dict()
        assert state.keys() == folded.keys()
        assert all(torch.equal(state[key], folded[key]) for key in state)
        assert any(value.eq(0).float().mean() > 0.7 for value in state.values() if value.ndim == 2)
        assert trainer.evaluate()["eval_loss"] > 0  # of a model that is finalized already


# -- teachers ---------------------------------------------------------------------------------


def other_model(kit):
    """A model as the kit's, with other weights."""
    model = kit.model()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


@each(TAUGHT)
def test_a_teacher_is_learned_from(kit, tmp_path):
    """With alpha 1 a student like its teacher has no loss and does not change, and another comes nearer."""
    settings = {
        "distillation": Distillation(1.0),
        "learning_rate": 3e-3,
        "max_steps": 12,
        "weight_decay": 0.0,
    }
    still = settings | {"max_steps": 2, "optim": "sgd"}
    same = kit.trainer(tmp_path / "same", None, teacher=kit.model(), **still)
    same.train()
    assert [line["distillation"] for line in lines(same)] == pytest.approx([0.0, 0.0], abs=1e-5)
    student = kit.trainer(tmp_path / "other", None, teacher=other_model(kit), **settings)
    student.train()
    distances = [line["distillation"] for line in lines(student)]
    assert distances == pytest.approx([line["loss"] for line in lines(student)], rel=1e-4)
    assert 0 < sum(distances[-3:]) < sum(distances[:3])


def test_the_folder_of_a_cross_encoder_is_a_teacher(kits, tmp_path):
    cross = kits("cross")
    other_model(cross).save_pretrained(str(tmp_path / "teacher"))
    losses = []
    for teacher in (tmp_path / "teacher", other_model(cross)):
        student = cross.trainer(tmp_path / "out", None, teacher=teacher, max_steps=2)
        student.train()
        losses.append([line["distillation"] for line in lines(student)])
    assert losses[0] == losses[1]


def test_next_tokens_are_compared_where_they_have_labels(kits, tmp_path):
    kit = kits("sft")
    model, teacher = kit.model(), other_model(kit)
    trainer = kit.trainer(tmp_path, None, model, teacher=teacher, distillation=Distillation(1.0, 1.0))
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 5, 6]])
    labels = torch.tensor([[-100, 6, -100, 8], [-100, -100, -100, 6]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad():
        own, theirs = (one(ids).logits.log_softmax(-1) for one in (model.eval(), teacher))
    each_token = (theirs.exp() * (theirs - own)).sum(-1)
    expected = (each_token[0, 0] + each_token[0, 2] + each_token[1, 2]) / 3
    loss = trainer.compute_loss(model.train(), batch)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def refused(call, *parts: str) -> None:
    with pytest.raises(FinepruneError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_what_cannot_be_taught(kits, tmp_path):
    sentence, cross = kits("sentence"), kits("cross")
    refused(
        lambda: sentence.trainer(tmp_path, teacher=sentence.model()),
        "a SentenceTransformer cannot be distilled",
        "cross-encoders",
    )
    folder = {"teacher_logits": tmp_path / "logits"}
    refused(
        lambda: cross.trainer(tmp_path, teacher=other_model(cross), **folder),
        "teacher_logits",
        "CrossEncoder",
    )
    sft = kits("sft")
    refused(
        lambda: sft.trainer(tmp_path, teacher=other_model(sft), **folder),
        "teacher_logits",
        "LlamaForCausalLM",
    )


def test_a_loss_without_gradients_cannot_be_taught(kits, tmp_path):
    cross = kits("cross")
    trainer = cross.trainer(tmp_path, teacher=other_model(cross))
    own = trainer.loss.forward

    def cached(*args, **kwargs):
        with torch.no_grad():
            return own(*args, **kwargs)

    trainer.loss.forward = cached
    refused(trainer.train, "BertForSequenceClassification without gradients", "take another loss")
