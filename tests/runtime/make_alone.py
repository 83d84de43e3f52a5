"""Write a tiny compact model for each task, and what torch answers, for alone.py.

python tests/runtime/make_alone.py OUT   with fineprune and torch
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it

from runtime.models import CONTEXTS, PAIRS, QUESTIONS, TEXTS, save

from fineprune.tasks.questions.prediction import answer
from fineprune.tasks.text.prediction import predict
from fineprune.tasks.tokens.prediction import predict_entities

# Name of the folder: architecture, task, types of values and of embeddings.
MODELS = {
    "text": ("bert", "text", "float32", "keep"),
    "text-int8": ("roberta", "text", "int8", "int8"),
    "tokens": ("distilbert", "tokens", "float16", "float16"),
    "questions": ("electra", "questions", "int8", "int4"),
}
LENGTH = 38  # tokens, which all of them have positions for


def main(out: Path) -> None:
    """Make OUT, with a folder for each model and expected.json."""
    expected: dict[str, Any] = {}
    for name, case in MODELS.items():
        model, tokenizer = save(out / name, *case)
        if case[1] == "text":
            asked = {"texts": TEXTS, "pairs": PAIRS}
            answers: Any = [asdict(one) for one in predict(model, tokenizer, TEXTS, PAIRS, max_length=LENGTH)]
        elif case[1] == "tokens":
            asked = {"texts": TEXTS, "pairs": None}
            found = predict_entities(model, tokenizer, TEXTS, max_length=LENGTH)
            answers = [[asdict(one) for one in entities] for entities in found]
        else:
            asked = {"texts": QUESTIONS, "pairs": CONTEXTS}
            answers = [
                asdict(one) for one in answer(model, tokenizer, QUESTIONS, CONTEXTS, max_length=LENGTH)
            ]
        expected[name] = asked | {"max_length": LENGTH, "answers": answers}
    (out / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    print(f"{len(expected)} models in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
