"""Tiny Sentence Transformers folders, and texts for them."""

import json
import random
import shutil
from pathlib import Path

WORDS = ["good", "bad", "film", "very", "a", "b"]


def sentence_folder(
    body: str, folder: Path, mode: str = "mean", normalize: bool = True, width: int = 8, **settings: object
) -> str:
    """Copy the folder of a transformer, and write the modules of sentence-transformers beside it."""
    shutil.copytree(body, folder)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": at, "name": str(at), "path": paths[at], "type": f"sentence_transformers.models.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"embedding_dimension": width, "pooling_mode": mode})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12} | settings))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "a "}}))
    return str(folder)


def texts(number: int) -> list[str]:
    """Return different texts of 3 to 7 words."""
    rng, made = random.Random(0), dict.fromkeys(["good film"])
    while len(made) < number:
        made[" ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 7)))] = None
    return list(made)
