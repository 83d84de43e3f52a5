"""Recipes and studies: odd values, and files that are hardly YAML. A recipe reads back as itself."""

import random
from pathlib import Path
from typing import Any

import yaml
from fuzz.mutation import DEEP, LONG, NAN, changed, mangled

from fineprune.config import METHODS, PruningConfig
from fineprune.errors import FinepruneError
from fineprune.study.grid import Study
from fineprune.training.run.recipe import Recipe

_PLACES = {"train": "train.tsv", "validation": "dev.tsv"}
_TRAINING = {"steps": 40, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0.1, "max_length": 32, "seed": 3}
RECIPES: list[dict[str, Any]] = [
    {
        "model": {"name": "tiny", "layers": 3, "trust_remote_code": False},
        "task": {"kind": "classification", **_PLACES, "text": ["a", "b"], "label": "c", "labels": ["x", "y"]},
        "training": _TRAINING | {"report_to": ["mlflow"], "precision": "bfloat16", "evaluate_every": 10},
        "pruning": {
            "method": "soft_movement",
            "density": 0.1,
            "warmup": 5,
            "cooldown": 0.3,
            "score_lr": 1e-2,
        },
        "distillation": {"teacher": "dense", "alpha": 0.5, "temperature": 2.0, "cache": True},
        "methods": {"magnitude": {"pruning": {"score_lr": None}}, "dense": {"training": {"epochs": 3}}},
    },
    {
        "model": "tiny",
        "task": {"kind": "token_classification", **_PLACES, "words": 0, "tags": 3, "metric": "f1"},
        "training": {"epochs": 2.5, "keep_best": True},
        "pruning": {
            "method": "movement",
            "density": 0.3,
            "scope": "global",
            "targets": ["*"],
            "exclude": ["x*"],
        },
    },
    {
        "model": "tiny",
        "task": {
            "kind": "question_answering",
            "train": "a.json",
            "validation": "b.json",
            "unanswerable": True,
        },
        "training": _TRAINING | {"group_by_length": True, "max_grad_norm": 1.0, "weight_decay": 0.01},
        "pruning": None,
    },
]
STUDIES: list[dict[str, Any]] = [
    {
        "name": "mine",
        "recipes": {"sst2": ["small-sst2", "training.steps=600"], "mnli": "small-mnli"},
        "overrides": ["training.batch_size=16"],
        "axes": {
            "method": ["dense", "magnitude", "movement", "keep_zeros"],
            "density": [0.1, 0.03],
            "scope": ["local", "global"],
            "distillation": [False, True],
            "seed": [0, 1],
        },
        "skip": [{"method": "magnitude", "density": 0.03}],
        "teacher": "dense",
        "claims": False,
    },
    {"name": "b", "recipes": {"sst2": "small-sst2"}, "axes": {"method": "movement", "density": 0.1}},
]
_OVERRIDES = [
    "pruning.density=0.2", "pruning=null", "training.steps=", "a=b", "model.name.x=1", "training.seed=[", "=",
    "..=1",
    "task=mnli", "task.more={a: b}", "pruning.method=l0", "methods=1", "model=x", "training=null",
    "pruning.options.x=1",
    "distillation.alpha=.nan", "training.steps=1e400", "\0=\0", "training.epochs=1:30",
    "pruning.warmup=2020-13-45",
]  # fmt: skip


def written(chance: random.Random, document: Any) -> bytes:
    """YAML, sometimes with what the dumper never writes."""
    text = yaml.safe_dump(document, sort_keys=False)
    for name, instead in ((DEEP, "[" * 3000 + "]" * 3000), (LONG, "1" * 5000), (NAN, ".nan")):
        text = text.replace(f"'{name}'", instead)
    if chance.random() < 0.1:
        bomb = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 8)}]\n" for i in range(9)
        )
        text += chance.choice((bomb, "model: again\n", "? [1]\n: 2\n", "<<: {x: 1}\n",
                               "!!python/name:os.system x: 1\n",
                               "x: !!set {a, a}\n", "x: !!binary '='\n", "x: 2020-13-45\n", "x: 1:61:99\n",
                               "&a x: *a\n",
                               "\ufeff", "---\nb: 1\n", "...\n%TAG\n", "x: !!timestamp 1\n",
                               "x: !!int ''\n"))  # fmt: skip
    content = text.encode(errors="surrogatepass")
    return mangled(chance, content) if chance.random() < 0.2 else content


class Recipes:
    """`Recipe.load`, and `PruningConfig.from_dict`."""

    share = 12.0
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        self.size = 2000

    def check(self, chance: random.Random, scratch: Path) -> str:
        document = changed(chance, chance.choice(RECIPES), times=chance.choice((0, 1, 1, 2, 4)))
        overrides = chance.sample(_OVERRIDES, chance.choice((0, 0, 0, 1, 2)))
        if chance.random() < 0.3:
            overrides.append(f"pruning.method={chance.choice(list(METHODS))}")
        path = scratch / "recipe.yaml"
        path.write_bytes(written(chance, document))
        try:
            recipe = Recipe.load(path, overrides)
        except FinepruneError as error:
            _one_line(error)
            return "refused"
        again = scratch / "again.yaml"
        again.write_text(recipe.to_yaml(), encoding="utf-8")
        if Recipe.load(again) != recipe:
            raise AssertionError(f"{recipe} reads back as {Recipe.load(again)}")
        if recipe.pruning is not None and PruningConfig.from_dict(recipe.pruning.to_dict()) != recipe.pruning:
            raise AssertionError("pruning reads back as another")
        return "accepted"


class Studies:
    """`Study.load`, and the runs of its grid."""

    share = 4.0
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        self.size = 2000

    def check(self, chance: random.Random, scratch: Path) -> str:
        document = changed(chance, chance.choice(STUDIES), times=chance.choice((0, 1, 1, 2)))
        path = scratch / "study.yaml"
        path.write_bytes(written(chance, document))
        try:
            study = Study.load(path)
            cells = study.cells()
            if len(cells) <= 4:
                study.runs(scratch)
        except FinepruneError as error:
            _one_line(error)
            return "refused"
        names = [cell.name.casefold() for cell in cells]
        if len(set(names)) != len(names):
            raise AssertionError("two runs of one folder")
        return "accepted"


def _one_line(error: Exception) -> None:
    """A message names what is wrong; it is for a terminal, so it is not a page long."""
    if len(str(error)) > 2500:
        raise AssertionError(f"a message of {len(str(error))} characters: {str(error)[:100]}")
