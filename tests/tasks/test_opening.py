"""A model of sentence-transformers reads texts as its settings say, as it does without torch."""

import json
from pathlib import Path

import pytest
from sentence_folders import sentence_folder

import fineprune_runtime
from fineprune import FinepruneError
from fineprune.tasks.embeddings.prediction import embed
from fineprune.tasks.opening import open_trained
from fineprune.tasks.text.prediction import predict

LONG, OTHER = "good film very a b a b good bad film a b", "bad film a b good"


@pytest.fixture
def cross(tmp_path, bert_config, tokenizer):
    """`cross(settings, length)`: a cross-encoder's folder, whose tokenizer has a `model_max_length`."""
    import torch
    from transformers import BertForSequenceClassification, BertTokenizer

    tokenizer = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)

    def make(settings: dict, length: int = 64, **about: str) -> Path:
        folder = tmp_path / "cross"
        torch.manual_seed(0)
        config = bert_config(num_labels=1, max_position_embeddings=64, vocab_size=len(tokenizer))
        model = BertForSequenceClassification(config)
        model.config.sentence_transformers = {"version": "5.0.0"}
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        said = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(said | {"model_max_length": length}))
        module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
        (folder / "modules.json").write_text(json.dumps([module]))
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
        about = {"model_type": "CrossEncoder"} | about
        (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
        return folder

    return make


@pytest.mark.parametrize(
    ("settings", "length", "same_as_uncut"),
    [
        ({}, 64, True),
        ({"max_seq_length": 12}, 64, False),  # the settings' length goes before the tokenizer's
        ({"max_seq_length": 30}, 10, True),
        ({}, 10, False),
    ],
)
def test_a_cross_encoder_cuts_at_its_own_length(cross, settings, length, same_as_uncut):
    def score(folder: Path) -> float:
        model, tokenizer, _ = open_trained(folder, need_tokenizer=True)
        (found,) = predict(model, tokenizer, [LONG], [OTHER])
        assert found.score == pytest.approx(
            fineprune_runtime.load(folder).predict([LONG], [OTHER])[0].score, abs=1e-5
        )
        return found.score

    folder = cross(settings, length)
    assert (score(folder) == pytest.approx(score(cross({})), abs=1e-5)) is same_as_uncut


def test_a_cross_encoder_lowercases_where_its_settings_say_so(cross):
    found = []
    for text, lower in (("good film", False), ("GOOD film", True), ("GOOD film", False)):
        model, tokenizer, _ = open_trained(cross({"do_lower_case": lower}), need_tokenizer=True)
        found.append(predict(model, tokenizer, [text], [OTHER])[0].score)
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[2] != pytest.approx(found[1], abs=1e-3)


def test_a_cross_encoder_with_a_prompt_is_refused(cross):
    with pytest.raises(FinepruneError, match="has a default_prompt_name, and a prompt is not possible here"):
        open_trained(cross({}, default_prompt_name="query"), need_tokenizer=True)


def test_embeddings_are_cut_at_the_length_of_the_settings(tmp_path, save_body):
    folder = Path(sentence_folder(save_body(), tmp_path / "sentences"))  # max_seq_length 12
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"model_max_length": 4}))
    model, tokenizer, _ = open_trained(folder, need_tokenizer=True)
    expected = fineprune_runtime.load(folder).encode([LONG])
    assert abs(embed(model, tokenizer, [LONG]).numpy() - expected).max() < 1e-5
