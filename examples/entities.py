"""Prune a model that finds entities, save it small, and use it without torch.

python examples/entities.py [MODEL [STEPS]]
"""

import sys

from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    TrainingArguments,
)

import fineprune
import fineprune_runtime
from fineprune.checkpoint.model_folder import minilm_folder

TAGS = ["O", "B-PER", "B-LOC"]
SENTENCES = [
    [("ann", 1), ("is", 0), ("in", 0), ("rome", 2)],
    [("bob", 1), ("left", 0), ("paris", 2)],
    [("rome", 2), ("is", 0), ("good", 0)],
    [("paris", 2), ("and", 0), ("bob", 1)],
]


def rows(tokenizer) -> list[dict]:
    """Return the sentences as rows for the Trainer; only the first token of a word has a label."""
    made = []
    for sentence in SENTENCES * 8:
        words, tags = zip(*sentence, strict=True)
        encoded = tokenizer(list(words), is_split_into_words=True)
        places = encoded.word_ids()
        first = [place is not None and place not in places[:i] for i, place in enumerate(places)]
        labels = [tags[place] if is_first else -100 for place, is_first in zip(places, first, strict=True)]
        made.append({**encoded, "labels": labels})
    return made


def main(name: str | None = None, steps: int = 100, out: str = "entities-small") -> list:
    """Train for `steps` steps, save the compact model to the folder `out`, and return what it finds."""
    name = name or minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(name)
    labels = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: i for i, tag in enumerate(TAGS)}}
    model = AutoModelForTokenClassification.from_pretrained(name, num_labels=len(TAGS), **labels)
    trainer = fineprune.PruningTrainer(
        model=model,
        args=TrainingArguments(
            "entities-run", max_steps=steps, learning_rate=5e-4, save_strategy="no", use_cpu=True
        ),
        train_dataset=rows(tokenizer),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        pruning=fineprune.PruningConfig(method="soft_movement", density=0.25),
    )
    trainer.train()
    fineprune.finalize(model)
    fineprune.save_compact(model, out, tokenizer=tokenizer, values="int8", embeddings="int8")
    (found,) = fineprune_runtime.load(out).predict(["bob is in rome"])
    print(found)
    return found


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, int(sys.argv[2]) if len(sys.argv) > 2 else 100)
