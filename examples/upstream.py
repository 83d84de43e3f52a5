"""Prune before any task, on unlabeled texts by the masked-LM objective; each task then keeps the zeros.

    python examples/upstream.py TEXTS OUT [MODEL [STEPS [DENSITY]]]
    fineprune run small-sst2 model=OUT pruning='{method: keep_zeros}' --out runs/sst2

TEXTS is a file with a text a line. There is no teacher: fineprune does not distill masked-LM heads.
"""

import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

import fineprune
from fineprune.checkpoint.model_folder import minilm_folder


def rows(path: Path, tokenizer: PreTrainedTokenizerBase, length: int = 128) -> Dataset:
    """Return the texts as token ids, and where the special tokens are, which are never masked."""
    if tokenizer.mask_token_id is None:
        raise fineprune.FinepruneError(
            f"the tokenizer {tokenizer.name_or_path} has no mask token; take a model of masked language "
            "modeling, such as BERT"
        )
    texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise fineprune.FinepruneError(f"{path}: has no text; give a file with a text a line")
    encoded = tokenizer(texts, truncation=True, max_length=length, return_special_tokens_mask=True)
    return Dataset.from_dict(dict(encoded))


def main(texts: Path, out: Path, name: str | None = None, steps: int = 2000, density: float = 0.15) -> float:
    """Train for `steps` steps and return the density of the compact model in `out`."""
    name = name or minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(name)
    train = rows(texts, tokenizer)
    model: Any = AutoModelForMaskedLM.from_pretrained(name)
    if tokenizer.mask_token_id >= model.get_input_embeddings().num_embeddings:
        raise fineprune.FinepruneError(f"{name}: the mask token is not in the model's table; add it first")
    arguments = TrainingArguments(
        out.with_name(f"{out.name}-training"),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=1e-4,
        warmup_steps=steps // 20,
        save_strategy="no",
        dataloader_pin_memory=False,
        report_to=[],
    )
    trainer = fineprune.PruningTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        data_collator=DataCollatorForLanguageModeling(tokenizer),
        pruning=fineprune.PruningConfig("magnitude", density, scope="global"),
    )
    trainer.train()
    fineprune.finalize(model)
    return fineprune.save_compact(model, out, tokenizer=tokenizer).density


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    given = zip((Path, Path, str, int, float), sys.argv[1:], strict=False)
    print(main(*(take(value) for take, value in given)))
