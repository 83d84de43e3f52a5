"""Write the model card of a compact model: its density, scores and size, and how to load it."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

_PAPER = (
    "Sanh, Wolf, Rush: Movement Pruning: Adaptive Sparsity by Fine-Tuning. NeurIPS 2020. arXiv:2005.07683"
)


def model_card(about: Mapping[str, Any]) -> str:
    """Return README.md for the content of fineprune.json."""
    architecture = about["architecture"]
    sentences = about.get("sentence_model")
    library, opener = (
        ("sentence-transformers", f'{sentences}("this folder")')
        if sentences
        else ("transformers", f'{architecture}.from_pretrained("this folder")')
    )
    data = ModelCardData(library_name=library, tags=["fineprune", "pruning", "sparse"])
    small, dense = about["bytes"] / 1e6, about["dense_bytes"] / 1e6
    method = (about["pruning"] or {}).get("method")
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# A pruned {architecture}",
        "",
        f"Keeps {about['density']:.2%} of the {about['total']:,} weights in its transformer layers"
        + (f", pruned by {method.replace('_', ' ')} pruning" if method else "")
        + f". The weights take {small:.1f} MB; dense they take {dense:.1f} MB.",
        "",
        *_scores(about),
        "```python",
        "import fineprune  # opens the packed matrices",
        f"from {library.replace('-', '_')} import {sentences or architecture}",
        "",
        f"model = {opener}",
        "```",
        "",
        "Without `import fineprune`, transformers stops at the shapes of the packed matrices. To "
        "delete `quantization_config`, as transformers then advises, does not help: import fineprune.",
        "",
        f"Sparse values are stored as {about['values']}; embeddings: {about['embeddings']}. On a probe batch "
        f"packing changed no output by more than {about['output_difference']:.2g} of the largest one.",
        "",
        *([f"Made by {_code(about['command'])}.", ""] if about["command"] else []),
        f"Method: {_PAPER}. Written by fineprune {about['fineprune']}.",
    ]
    return str(ModelCard("\n".join(lines) + "\n"))


def _scores(about: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of scores."""
    if not about["scores"]:
        return ["No score was measured when this was saved.", ""]
    dense = about["dense_scores"] or {}
    lines = ["| metric | pruned | dense |", "|---|---|---|"]
    for name, value in about["scores"].items():
        before = f"{dense[name]:.4f}" if name in dense else "not measured"
        lines.append(f"| {_cell(name)} | {value:.4f} | {before} |")
    return [*lines, "", "Measured before packing.", ""]


def _cell(text: str) -> str:
    """Return the text for a cell of a table: on one line, markup escaped."""
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Return the text as code, in a fence longer than any run of backticks in it."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"
