"""Prune a model that answers questions out of a text: two commands do it, with SQuAD's own format.

python examples/questions.py [MODEL [STEPS]]
"""

import json
import sys
from pathlib import Path

import fineprune_runtime
from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe

CONTEXT = "ann is in rome and bob is in paris"
ASKED = {"who is in rome ?": ("ann", 0), "who is in paris ?": ("bob", 19)}


def main(model: str = "minilm", steps: int = 60, out: str = "questions") -> list:
    """Write the data, train for `steps` steps into the folder `out`, and answer without torch."""
    answers = [
        {"id": str(i), "question": question, "answers": [{"text": text, "answer_start": start}]}
        for i, (question, (text, start)) in enumerate(list(ASKED.items()) * 8)
    ]
    place = Path(out)
    place.mkdir(exist_ok=True)
    squad = {"data": [{"title": "", "paragraphs": [{"context": CONTEXT, "qas": answers}]}]}
    (place / "train.json").write_text(json.dumps(squad), encoding="utf-8")

    settings = {
        "model": model,
        "task": {
            "kind": "question_answering",
            "train": str(place / "train.json"),
            "validation": str(place / "train.json"),
        },
        "training": {"steps": steps, "batch_size": 4, "learning_rate": 5e-4, "max_length": 32},
        "pruning": {"method": "soft_movement", "density": 0.25},
    }
    results = run_recipe(Recipe.from_dict(settings), place / "run", resume=True)  # `fineprune run` does this
    print(f"{results['metric']} {results['score']:.1%} at {results['density']:.1%}")
    found = fineprune_runtime.load(place / "run" / "model").predict(list(ASKED), [CONTEXT] * len(ASKED))
    for answer in found:
        print(answer)
    return found


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "minilm", int(sys.argv[2]) if len(sys.argv) > 2 else 60)
