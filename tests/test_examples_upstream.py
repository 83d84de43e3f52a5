"""Upstream pruning as its example has it: masked-LM pruning, then fine-tuning that keeps the zeros."""

import pytest
import torch
import yaml
from support import call, example, write_recipe
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fineprune

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "so", "film", "acting"]


@pytest.fixture(scope="module")
def body(save_body):
    """The folder of a tiny BERT."""
    return save_body(WORDS, hidden_size=32, intermediate_size=64, max_position_embeddings=16)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    # Enough texts that each batch has a masked token.
    path.write_text("a good film\n\nso bad acting\na bad film\n" * 20, encoding="utf-8")
    return path


def test_the_zeros_of_the_first_run_stay_in_the_second(body, texts, tmp_path):
    out = tmp_path / "upstream"
    assert example("upstream").main(texts, out, body, 10, 0.2) == pytest.approx(0.2, abs=5e-3)
    upstream = fineprune.load(out).state_dict()
    write_recipe(tmp_path, out, ["good film\t1", "bad film\t0", "so good\t1", "so bad\t0"], 0.2)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["pruning"] = {"method": "keep_zeros"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert call("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run") == 0
    tuned = fineprune.load(tmp_path / "run" / "model")
    assert isinstance(tuned, AutoModelForSequenceClassification.from_pretrained(out).__class__)
    for entry in fineprune.summary(tuned).layers:
        before, after = upstream[f"{entry.name}.weight"], tuned.get_parameter(f"{entry.name}.weight")
        assert torch.all(after[before == 0] == 0)
        assert not torch.equal(before, after)


def test_what_cannot_be_masked_is_refused(body, texts, tmp_path):
    module = example("upstream")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n", encoding="utf-8")
    with pytest.raises(fineprune.FinepruneError, match=r"empty\.txt: has no text"):
        module.main(empty, tmp_path / "out", body)
    tokenizer = AutoTokenizer.from_pretrained(body)
    tokenizer.mask_token = None
    with pytest.raises(fineprune.FinepruneError, match="has no mask token"):
        module.rows(texts, tokenizer)
