"""One of the processes of test_processes.py: trainers and runs, whose results the test compares."""

import itertools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from fineprune import FinepruneError, PruningConfig, PruningTrainer
from fineprune.training.host import sealing
from fineprune.training.host.stopping import StopsAtSignals
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

sys.path.append(str(Path(__file__).resolve().parents[2]))

from several import report

STEPS, BATCH = 12, 8


def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=36,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
            num_labels=2,
        )
    )


def data(count):
    """Rows of two to ten tokens, the same everywhere."""
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(2, 11, (count,), generator=generator).tolist()
    ids = [torch.randint(1, 50, (length,), generator=generator) for length in lengths]
    return [{"input_ids": row.tolist(), "labels": int(row[0]) % 2} for row in ids]


def collate(rows):
    ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def by_order(prediction):
    """A metric that goes by the order of the rows, as that of answers over windows does."""
    weights = np.arange(1, len(prediction.label_ids) + 1)
    return {
        "sum": float(prediction.predictions[:, 0] @ weights),
        "labels": float(prediction.label_ids @ weights),
    }


def trainer(folder, batch=BATCH, rows=44, **settings):
    """44 rows make five steps of 8 and one of 4; 21 to evaluate are never a whole number of batches."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    given = {"per_device_train_batch_size": batch // count, "per_device_eval_batch_size": 8 // count}
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        learning_rate=1e-2,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=6,
        save_steps=6,
        logging_steps=1,
        seed=3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **(given | settings),
    )
    if settings.get("fsdp"):  # accelerate has it on accelerators only; gloo takes the place of NCCL
        assert arguments.world_size == count
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return PruningTrainer(
        model=model(),
        args=arguments,
        pruning=PruningConfig("soft_movement", density=0.25),
        check_masks=3,
        train_dataset=data(rows),
        eval_dataset=data(21),
        data_collator=collate,
        compute_metrics=by_order,
    )


def write(folder, name, made):
    """What is compared: the logs, and the density."""
    if made.is_world_process_zero():
        (folder / f"{name}.json").write_text(json.dumps([made.state.log_history, made.pruner.density]))


FSDP = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["BertLayer"]}}


def trained(folder, name, checkpoint=None, **settings):
    made = trainer(folder / name, **settings)
    made.train(resume_from_checkpoint=None if checkpoint is None else str(folder / checkpoint))
    write(folder, name if checkpoint is None else f"{name}-resumed", made)
    made.save_model(str(folder / f"{name}-model"))


def refused(match, call):
    with pytest.raises(FinepruneError, match=match):
        call()


def rank():
    return int(os.environ["RANK"])


def stopped(folder):
    """One process gets SIGTERM after the third step; all end after the tenth, when they ask each other."""
    recipe = Recipe.load(folder / "recipe.yaml", ["training.steps=14"])
    own = StopsAtSignals.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        own(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopsAtSignals, "on_step_end", on_step_end)
        with pytest.raises(SystemExit, match="75"):
            run_recipe(recipe, folder / "run-stopped", progress=False)

        def told_late(self, args, state, control, **kwargs):
            if state.global_step == 13 and rank() == 1:
                signal.raise_signal(signal.SIGTERM)
            own(self, args, state, control, **kwargs)

        patch.setattr(StopsAtSignals, "on_step_end", told_late)
        with pytest.raises(SystemExit, match="75"):  # they ask again before they part
            run_recipe(recipe, folder / "run-stopped", resume=True, progress=False)
    results = run_recipe(recipe, folder / "run-stopped", resume=True, progress=False)
    assert results["resumed_from_step"] == 14


def full_disk(folder):
    """The process that writes cannot: the other does not wait for it, wherever it fails."""

    def full(*arguments, **settings):
        if rank() == 0:
            raise OSError(28, "No space left on device")

    why = r"checkpoint-6: another process" if rank() else r"checkpoint-6: cannot be written .*No space left"
    for place, name in ((sealing, "seal"), (PruningTrainer, "_save")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, full)
            # Each state competes, as in a dense run: with a best one the Trainer waits in mid-save.
            patch.setattr(PruningTrainer, "_determine_best_metric", Trainer._determine_best_metric)
            made = trainer(folder / "full", metric_for_best_model="sum", greater_is_better=True)
            refused(why, made.train)


def nan_on_one(folder):
    """A loss that is nan on one process stops both at that step."""

    def loss(outputs, labels, num_items_in_batch=None):
        value = torch.nn.functional.cross_entropy(outputs.logits, labels)
        return value * float("nan") if rank() and made.state.global_step == 4 else value

    made = trainer(folder / "nan")
    made.compute_loss_func = loss
    refused(r"training: another process" if rank() == 0 else r"step 5: the loss is nan", made.train)


def two_stages(folder):
    """Both stages run on all processes, and the second is refused before the first is trained."""
    overrides = ["dense={steps: 3}", "training.steps=4", "distillation={alpha: 0.5}"]
    results = run_recipe(Recipe.load(folder / "recipe.yaml", overrides), folder / "staged", progress=False)
    assert (results["steps"], results["dense"]["steps"]) == (4, 3)
    assert results["teacher_score"] == results["dense"]["score"]
    wrong = Recipe.load(folder / "recipe.yaml", [*overrides, "pruning.targets=[nowhere]"])
    refused("nowhere", lambda: run_recipe(wrong, folder / "none", progress=False))
    assert not (folder / "none" / "dense").exists()


def checks(folder):
    recipe = Recipe.load(folder / "recipe.yaml")
    yield "run", lambda: run_recipe(recipe, folder / "run-two", progress=False)
    yield "run-finished", lambda: run_recipe(recipe, folder / "run-two", resume=True, progress=False)

    def run(*overrides):
        return lambda: run_recipe(
            Recipe.load(folder / "recipe.yaml", overrides), folder / "none", progress=False
        )

    batch = r"training.batch_size=9: is the batch of all 2 .* take 10"
    yield "run-batch", lambda: refused(batch, run("training.batch_size=9"))
    differs = "run: the processes disagree about pruning"
    yield "run-differs", lambda: refused(differs, run(f"pruning.density=0.{rank() + 1}"))
    yield "run-nothing-made", lambda: (folder / "none").exists() and pytest.fail("a folder was made")

    yield "stages", lambda: two_stages(folder)
    yield "run-stopped", lambda: stopped(folder)
    yield "full-disk", lambda: full_disk(folder)
    yield "nan-on-one", lambda: nan_on_one(folder)

    yield "two", lambda: trained(folder, "two")
    yield "two-resumes-one", lambda: trained(folder, "two", "one/checkpoint-6")
    fewer = "disagree about the rows of the training data"
    yield "rows", lambda: refused(fewer, lambda: trainer(folder / "none", rows=44 - rank()))
    wider = r"checkpoint-6: its steps took 8 rows, on 1 processes; these would take 16"
    yield "resumed-wider", lambda: refused(wider, lambda: trained(folder, "no", "one/checkpoint-6", batch=16))
    yield "fsdp", lambda: trained(folder, "fsdp", **FSDP)
    yield "fsdp-resumed", lambda: trained(folder, "fsdp", "fsdp/checkpoint-6", **FSDP)
    without = r"written without FSDP, this run is with it"
    yield "fsdp-from-ddp", lambda: refused(without, lambda: trained(folder, "no", "two/checkpoint-6", **FSDP))


def whole(folder):
    """What takes the place of checks under FINEPRUNE_STRESS: every way to save, accumulation, bfloat16."""
    for state, parts in itertools.product(("FULL_STATE_DICT", "SHARDED_STATE_DICT"), (1, 2)):
        settings = {
            "fsdp": True,
            "fsdp_config": FSDP["fsdp_config"] | {"state_dict_type": state},
            "gradient_accumulation_steps": parts,
            "batch": BATCH // parts,
        }
        name = f"fsdp-{state}-{parts}"
        yield name, lambda name=name, settings=settings: trained(folder, name, **settings)
        yield (
            f"{name}-resumed",
            lambda name=name, settings=settings: trained(folder, name, f"{name}/checkpoint-6", **settings),
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    report(whole(place) if "whole" in sys.argv else checks(place), place)
    torch.distributed.destroy_process_group()
