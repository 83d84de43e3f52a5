"""The hosts of pruning_trainer with all that a tiny training of each takes."""

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

from fineprune import PruningConfig, pruning_trainer

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


def make_kits(folder: Path, tokenizer: Any, bert_config: Any) -> Any:
    """Return a function that makes the kit of a host, by name, once."""
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


def other_model(kit):
    """A model as the kit's, with other weights."""
    model = kit.model()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model
