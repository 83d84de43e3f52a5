"""Prune a decoder with TRL's SFTTrainer, save it small, load it and let it write.

python examples/decoder_trl.py MODEL [STEPS]
"""

import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import fineprune

TEXTS = ["a good film so good", "a bad film so bad", "good acting so good", "bad acting so bad"]


def main(name: str, steps: int = 60, out: Path = Path("pruned")) -> str:
    """Train for `steps` steps; return how the loaded model goes on after the first words of a text."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name)
    trainer = fineprune.pruning_trainer(SFTTrainer)(
        model=model,
        args=SFTConfig(
            out / "training",
            max_steps=steps,
            save_strategy="no",
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
        pruning=fineprune.PruningConfig(method="soft_movement", density=0.30),
    )
    trainer.train()
    fineprune.finalize(model)

    print(fineprune.save_compact(model, out / "small", tokenizer=tokenizer))
    small = AutoModelForCausalLM.from_pretrained(out / "small").eval()  # works after `import fineprune`
    start = tokenizer("a good", return_tensors="pt", add_special_tokens=False)
    ids = small.generate(**start, max_new_tokens=4, do_sample=False)
    text = str(tokenizer.decode(ids[0], skip_special_tokens=True))
    print(text)
    return text


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60)
