"""Run folders as runs leave them, and a study so small that its runs take a second."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fineprune.training.run.mask_snapshot import MatrixSnapshot, Record


@pytest.fixture
def write_results(tmp_path: Path) -> Callable[..., Path]:
    """`write_results(name, method, density, {metric: score})`: a finished run in the folder `out`."""

    def write(name: str, method: str, density: float | None, scores: dict[str, float], **more: Any) -> Path:
        pruning = {"method": method, "density": density, "scope": more.get("scope")}
        metric = more.get("metric", next(iter(scores)))
        results = {
            "metric": metric,
            "score": scores[metric],
            "scores": scores | {"loss": 0.5},
            "density": more.get("kept", density or 1.0),
            "kept": 10,
            "total": 100,
            "parameters": 200,
            "steps": 7,
            "seconds": 1.5,
            "examples": {"train": 3} | ({"validation": more["validation"]} if "validation" in more else {}),
            "environment": {"torch": "2"},
            "recipe": {
                "model": {"name": "tiny"},
                "training": {"seed": int(re.findall(r"-s(\d+)", name)[-1]), "steps": more.get("steps", 7)},
                "pruning": None if method == "dense" else pruning,
                "distillation": {"teacher": name, "alpha": 0.9} if "-distilled-" in name else None,
            },
        }
        folder = tmp_path / "out" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    return write


@pytest.fixture
def recipe_file(tmp_path: Path, save_body: Callable[..., str]) -> Path:
    """A recipe of 12 steps of a tiny model on texts that tell their label."""
    lines = [f"{'very ' * (i % 4)}{('bad', 'good')[i % 2]} film\t{('neg', 'pos')[i % 2]}" for i in range(48)]
    data = tmp_path / "data.tsv"
    data.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    values = {
        "model": save_body(),
        "task": {"train": str(data), "validation": str(data)},
        "training": {
            "steps": 12,
            "batch_size": 8,
            "learning_rate": 0.01,
            "max_length": 16,
            "evaluate_every": 4,
        },
        "pruning": {"method": "movement", "density": 0.25},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """`write_run("sst2-movement-0.1-s0", "movement", 0.1, 0.8)`: a run folder in `runs`, as runs leave it.

    `score=None` is a run that is not finished. `record`, `lines`, `config`, `bench` and `model` are what is
    in it besides, `more` joins its results.
    """

    def write(name: str, method: str, density: float | None, score: float | None, **given: Any) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "model").mkdir(parents=True)
        recipe = {
            "model": given.get("model", {"name": "tiny", "layers": None}),
            "training": {"seed": int(re.findall(r"-s(\d+)", name)[-1]), "steps": 7},
            "pruning": None
            if density is None
            else {"method": method, "density": density, "scope": given.get("scope")},
            "distillation": {"teacher": "dense", "alpha": 0.9} if "-distilled-" in name else None,
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        if score is not None:
            counts = {"kept": 10, "total": 100, "parameters": 200, "steps": 7, "seconds": 1.5}
            metric = given.get("metric", "accuracy")
            scores = {"metric": metric, "score": score, "scores": {metric: score}}
            reached = {"density": given.get("kept", density or 1.0), "recipe": recipe}
            more = given.get("more", {})
            (folder / "results.json").write_text(json.dumps(counts | scores | reached | more))
        for file, value in (("model/config.json", given.get("config")), ("bench.json", given.get("bench"))):
            if value is not None:
                (folder / file).write_text(json.dumps(value))
        if "lines" in given:
            lines = [json.dumps(line) + "\n" for line in given["lines"]]
            (folder / "metrics.jsonl").write_text("".join(lines))
        if "record" in given:
            given["record"].save(folder)
        return folder

    return write


@pytest.fixture
def tiny_record() -> Callable[..., Record]:
    """`tiny_record()`: ten weights of V and O of one layer, four by four each; a head of V is empty."""

    def make(names: tuple[str, ...] = (), scored: bool = False) -> Record:
        names = names or tuple(f"encoder.layer.0.attention.{end}" for end in ("self.value", "output.dense"))
        mask = np.zeros((4, 4), np.int32)
        mask[2:] = 1
        rows, columns = mask.sum(1, dtype=np.int32), mask.sum(0, dtype=np.int32)
        matrix = MatrixSnapshot(names[0], (4, 4), rows, columns, (255 * mask).astype(np.uint8))
        before = np.array([-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
        kept = np.abs(before) > 0.25
        return Record(
            tuple(replace(matrix, name=name) for name in names),
            np.array([-0.5, 0.0, 0.5], np.float32),
            np.array([2, 3], np.int64),
            before,
            before + np.float32(0.125),
            kept,
            np.abs(before) * 10 if scored else None,
        )

    return make
