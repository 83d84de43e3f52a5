"""Run folders as runs leave them, and a study so small that its runs take a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


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
            "steps": 7,
            "seconds": 1.5,
            "examples": {"train": 3},
            "environment": {"torch": "2"},
            "recipe": {
                "model": {"name": "tiny"},
                "training": {"seed": int(name.rpartition("-s")[2]), "steps": more.get("steps", 7)},
                "pruning": None if method == "dense" else pruning,
                "distillation": {"teacher": name, "alpha": 0.9} if "-distilled-" in name else None,
            },
        }
        folder = tmp_path / "out" / name
        folder.mkdir(parents=True)
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
