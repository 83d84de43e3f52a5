"""The model card: its sentences, its table, and the code that it shows."""

import pytest
from huggingface_hub import ModelCard

from fineprune.checkpoint.card import model_card

ABOUT = {
    "fineprune": "9.9",
    "architecture": "BertForSequenceClassification",
    "values": "int8",
    "embeddings": "int4",
    "density": 0.05,
    "total": 85_000_000,
    "bytes": 12_300_000,
    "dense_bytes": 438_000_000,
    "pruning": None,
    "scores": None,
    "dense_scores": None,
    "command": None,
    "output_difference": 0.00123,
}


def card(**values):
    return model_card(ABOUT | values)


def table(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_what_is_always_said():
    text = card()
    data = ModelCard(text).data
    assert (data.library_name, data.tags) == ("transformers", ["fineprune", "pruning", "sparse"])
    assert "# A pruned BertForSequenceClassification" in text
    assert (
        "Keeps 5.00% of the 85,000,000 weights in its transformer layers. "
        "The weights take 12.3 MB; dense they take 438.0 MB." in text
    )
    assert "Sparse values are stored as int8; embeddings: int4." in text
    assert "packing changed no output by more than 0.0012 of the largest one" in text
    assert "No score was measured" in text
    assert "Made by" not in text
    assert "as transformers then advises, does not help: import fineprune." in text
    assert "arXiv:2005.07683. Written by fineprune 9.9." in text
    assert text.endswith("\n")


def test_the_code_it_shows_runs(compact):
    """Every compact folder has a card."""
    text = (compact / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace("this folder", str(compact))
    names = {}
    exec(code, names)
    assert type(names["model"]).__name__ == "BertForSequenceClassification"


def test_scores_beside_the_dense_ones():
    text = card(scores={"accuracy": 0.87654321, "f1": 1}, dense_scores={"accuracy": 0.9, "mcc": 0.5})
    assert table(text) == [
        "| metric | pruned | dense |",
        "|---|---|---|",
        "| accuracy | 0.8765 | 0.9000 |",
        "| f1 | 1.0000 | not measured |",
    ]
    assert "No score" not in text
    assert table(card(scores={"f1": 0.5})) == [*table(text)[:2], "| f1 | 0.5000 | not measured |"]
    assert table(card(scores={}, dense_scores={"f1": 0.5})) == []


@pytest.mark.parametrize("name", ["a|b", "*a*", "a\nb", "`a`", "<a>"])
def test_markdown_in_the_name_of_a_metric(name):
    """One row with three cells, whatever the name."""
    (row,) = table(card(scores={name: 0.5}))[2:]
    assert row.replace("\\|", "").count("|") == 4
    assert row.endswith("| 0.5000 | not measured |")
    assert "<a>" not in row
    assert "f1_macro | 0.5" in card(scores={"f1_macro": 0.5})


def test_method_and_command():
    text = card(pruning={"method": "soft_movement"}, command="fineprune run 'my `recipe`.yaml'")
    assert "transformer layers, pruned by soft movement pruning. The" in text
    assert "Made by ``fineprune run 'my `recipe`.yaml'``." in text
    assert "Made by `fineprune run a.yaml`." in card(command="fineprune run a.yaml")
    assert "Made by `a b`." in card(command="a\n b")
    assert "Made by `` `a` ``." in card(command="`a`")
