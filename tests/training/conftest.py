"""A model of a few hundred weights, its tokenizer, and data that it can learn."""

import json
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

STEPS = 12


def text_of(rng: random.Random, label: int) -> str:
    """A text of 1 to 7 words, with the word that tells its label."""
    words = [rng.choice(["film", "very", "a", "b"]) for _ in range(rng.randint(0, 6))]
    words.insert(rng.randint(0, len(words)), ("bad", "good")[label])
    return " ".join(words)


@pytest.fixture(scope="session")
def make_model(bert_config) -> Callable[..., Any]:
    """`make_model(**config)`: always the same weights; dropout as in BERT unless told otherwise."""
    from transformers import BertForSequenceClassification

    def make(**values: Any):
        torch.manual_seed(7)
        return BertForSequenceClassification(bert_config(**values))

    return make


@pytest.fixture
def teacher(make_model) -> Any:
    """Other weights than the student's; with dropout in its config, as a real teacher."""
    from transformers import BertForSequenceClassification

    config = make_model().config
    torch.manual_seed(8)
    return BertForSequenceClassification(config)


@pytest.fixture(scope="session")
def pretrained(save_body: Callable[..., str]) -> str:
    """A folder with the body, without a head, and its tokenizer."""
    return save_body()


@pytest.fixture(scope="session")
def rows(tokenizer):
    """48 examples: 6 steps of batch 8 are an epoch."""
    from datasets import Dataset

    rng = random.Random(0)
    labels = [index % 2 for index in range(48)]
    return Dataset.from_dict({**tokenizer([text_of(rng, label) for label in labels]), "labels": labels})


@pytest.fixture
def make_trainer(make_model, rows, tokenizer, tmp_path: Path) -> Callable[..., Any]:
    """`make_trainer(pruning, folder, model=..., optimizers=..., **arguments)`, quiet, 12 steps of batch 8."""
    from transformers import DataCollatorWithPadding, PrinterCallback, TrainingArguments, set_seed

    from fineprune import PruningTrainer

    def make(pruning: Any, folder: str = "out", *, given: dict[str, Any] | None = None, **values: Any):
        settings = {
            "output_dir": str(tmp_path / folder),
            "max_steps": STEPS,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "weight_decay": 0.01,
            "warmup_steps": 2,
            "save_strategy": "steps",
            "save_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "logging_steps": 1,
            "seed": 3,
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "use_cpu": True,
        }
        arguments = TrainingArguments(**(settings | values))
        set_seed(arguments.seed)
        parts: dict[str, Any] = {
            "args": arguments,
            "data_collator": DataCollatorWithPadding(tokenizer),
            "train_dataset": rows,
            "eval_dataset": rows.select(range(12)),
        } | (given or {})
        if "model" not in parts and "model_init" not in parts:
            parts["model"] = make_model()
        trainer = PruningTrainer(pruning=pruning, **parts)
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


@pytest.fixture
def files(tmp_path: Path, pretrained: str) -> SimpleNamespace:
    """`train` (48 rows, TSV), `validation` (20 rows, JSONL) and `recipe(**sections)` over them."""
    rng = random.Random(1)
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [f"{text_of(rng, index % 2)}\t{('neg', 'pos')[index % 2]}" for index in range(48)]
    (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    cells = [
        {"text": text_of(rng, index % 2), "label": ("neg", "pos")[index % 2], "id": index}
        for index in range(20)
    ]
    (folder / "validation.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))

    def recipe(**sections: Any):
        from fineprune.training.run.recipe import Recipe

        values: dict[str, Any] = {
            "model": pretrained,
            "task": {
                "train": str(folder / "train.tsv"),
                "validation": str(folder / "validation.jsonl"),
            },
            "training": {
                "steps": STEPS,
                "batch_size": 8,
                "learning_rate": 1e-2,
                "max_length": 16,
                "evaluate_every": 4,
                "seed": 5,
            },
            "pruning": {"method": "movement", "density": 0.25},
        }
        for name, section in sections.items():
            before = values.get(name)
            merge = isinstance(section, dict) and isinstance(before, dict)
            values[name] = before | section if merge else section
        return Recipe.from_dict(values)

    return SimpleNamespace(
        folder=folder, train=folder / "train.tsv", validation=folder / "validation.jsonl", recipe=recipe
    )


# -- trainers ---------------------------------------------------------------------------------


def without_times(lines: Iterable[dict[str, float]]) -> list[dict[str, float]]:
    """What a trainer logs without times and without the closing line of the whole run."""
    times = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    return [
        {name: value for name, value in line.items() if name not in times}
        for line in lines
        if "train_runtime" not in line
    ]


@pytest.fixture(scope="session")
def history() -> Callable[[Any], list[dict[str, float]]]:
    """`history(trainer)`: its logs, without times."""
    return lambda trainer: without_times(trainer.state.log_history)


@pytest.fixture(scope="session")
def tensors() -> Callable[[Any], dict[str, torch.Tensor]]:
    """`tensors(trainer)`: weights, scores, masks and offsets, copied."""
    return lambda trainer: {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.fixture(scope="session")
def assert_same() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None]:
    """Of what `tensors` gives, twice."""

    def check(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name

    return check


@pytest.fixture(scope="session")
def every() -> Callable[..., Any]:
    """`every(function)`: a callback that calls it with the step at the end of each, after everything else."""
    from transformers import TrainerCallback

    class Every(TrainerCallback):
        def __init__(self, function: Callable[[int], object]) -> None:
            self.function = function

        def on_step_end(self, args, state, control, **kwargs) -> None:
            self.function(state.global_step)

    return Every


@pytest.fixture(scope="session")
def stop_after(every: Callable[..., Any]) -> Callable[[int], Any]:
    """`stop_after(step)`: a callback that raises out of the training loop, as an interrupt would."""

    def make(step: int) -> Any:
        def stop(done: int) -> None:
            if done == step:
                raise KeyboardInterrupt

        return every(stop)

    return make


# -- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def logs() -> Callable[[Path], list[dict[str, float]]]:
    """`logs(folder)`: the lines of metrics.jsonl, without times."""
    return lambda folder: without_times(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


@pytest.fixture(scope="session")
def assert_same_run(names: Callable[[Path], set[str]], logs) -> Callable[[Path, Path], None]:
    """Two folders of finished runs: the same but for what depends on how the run went."""

    def results(folder: Path) -> dict[str, Any]:
        values = json.loads((folder / "results.json").read_text())
        return {
            name: value
            for name, value in values.items()
            if name not in ("seconds", "resumed_from_step", "warnings")
        }

    def content(file: Path) -> tuple[dict[str, Any], bytes]:
        """The header, whose entries are in any order, and all bytes behind it."""
        whole = file.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        return json.loads(whole[8:end]), whole[end:]

    def check(one: Path, other: Path) -> None:
        assert names(one) == names(other)
        assert results(one) == results(other)
        assert logs(one) == logs(other)
        weights = [content(folder / "model" / "model.safetensors") for folder in (one, other)]
        assert weights[0] == weights[1]
        assert (one / "recipe.yaml").read_text() == (other / "recipe.yaml").read_text()
        if (one / "weights.npz").exists():
            with np.load(one / "weights.npz") as ours, np.load(other / "weights.npz") as theirs:
                assert ours.files == theirs.files
                assert all(np.array_equal(ours[name], theirs[name]) for name in ours.files)

    return check


@pytest.fixture(scope="session")
def refused_run() -> Callable[..., None]:
    """`refused_run(recipe, out, *parts)`: it fails with one line that has these parts."""
    from fineprune import FinepruneError
    from fineprune.training.run.train import run_recipe

    def check(recipe: Any, out: Path, *parts: str, resume: bool = False) -> None:
        with pytest.raises(FinepruneError) as error:
            run_recipe(recipe, out, resume=resume, progress=False)
        text = str(error.value)
        assert "\n" not in text
        for part in parts:
            assert part in text

    return check


# -- what is shipped --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, pretrained: str) -> Path:
    """A run of twelve steps; not to be changed."""
    from fineprune.training.run.recipe import Recipe
    from fineprune.training.run.train import run_recipe

    folder = tmp_path_factory.mktemp("shipping")
    rows = [f"{'very ' * (i % 4)}{('bad', 'good')[i % 2]} film\t{('neg', 'pos')[i % 2]}" for i in range(40)]
    (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    data = str(folder / "train.tsv")
    values = {
        "model": pretrained,
        "task": {"train": data, "validation": data},
        "training": {"steps": 12, "batch_size": 8, "learning_rate": 1e-2, "max_length": 16},
        "pruning": {"method": "movement", "density": 0.25},
    }
    run_recipe(Recipe.from_dict(values), folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="session")
def files_in() -> Callable[[Path], dict[Path, bytes]]:
    """`files_in(folder)`: every file at or below it, with its bytes."""
    return lambda folder: {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
