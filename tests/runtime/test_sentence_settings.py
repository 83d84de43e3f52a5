"""Lengths and lowercasing as sentence-transformers sets them, and settings that cannot be followed."""

import json
import shutil

import numpy as np
import pytest
from runtime.models import make_model, make_tokenizer
from sentence_folders import sentence_folder

from fineprune_runtime import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.loading import load
from fineprune_runtime.sentence_settings import SentenceSettings, read_sentence_settings

TEXTS = ["a good film", "A [SEP] FILM [MASK] good", "very very good film the Anna London " * 9, ""]
QUERIES, PASSAGES = (
    ["a good film", "Bad [SEP] film", "good " * 30],
    ["very bad", "a [MASK]", "the film " * 30],
)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """Folders of transformers: `body`, a base model, `one`, with a score, and `two`, with two labels."""
    folder = tmp_path_factory.mktemp("bodies")
    models = {"body": make_model("bert", "text").bert, "one": make_model("bert", "text", 1)}
    for name, model in (models | {"two": make_model("bert", "text", 2)}).items():
        model.save_pretrained(folder / name)
        make_tokenizer("bert").save_pretrained(folder / name)
    return folder


def change(folder, name, **settings):
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | settings))


def encoder(bodies, folder, cls="SentenceTransformer", labels="one", **settings):
    """A folder for the class, with these settings of its transformer."""
    if cls == "SentenceTransformer":
        sentence_folder(bodies / "body", folder, width=16)
    else:
        shutil.copytree(bodies / labels, folder)
        entry = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
        (folder / "modules.json").write_text(json.dumps([entry]))
        change(folder, "config_sentence_transformers.json", model_type="CrossEncoder")
        settings = {"transformer_task": "sequence-classification"} | settings
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


READ = [
    {"max_seq_length": 12},
    {"max_seq_length": 30},  # above model_max_length, which is 16
    {"do_lower_case": True},
    {"max_seq_length": 25, "do_lower_case": True, "processing_kwargs": {"text": {}}, "query_length": None},
]


@pytest.mark.parametrize("settings", READ)
@pytest.mark.parametrize("cased", [False, True])
def test_what_sentence_transformers_reads(settings, cased, bodies, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    folder = encoder(bodies, tmp_path / "in", **settings)
    change(folder, "tokenizer_config.json", model_max_length=16, do_lower_case=not cased)
    theirs, ours = library.SentenceTransformer(str(folder), device="cpu"), load(folder)
    assert ours.usual == theirs.max_seq_length == settings.get("max_seq_length", 16)
    assert np.abs(theirs.encode(TEXTS) - ours.encode(TEXTS)).max() < 1e-5


@pytest.mark.parametrize("settings", READ)
def test_what_a_cross_encoder_reads(settings, bodies, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    folder = encoder(bodies, tmp_path / "in", "CrossEncoder", **settings)
    change(folder, "tokenizer_config.json", model_max_length=16, do_lower_case=False)
    theirs, ours = library.CrossEncoder(str(folder), device="cpu"), load(folder)
    assert ours.usual == theirs.max_seq_length
    expected = theirs.predict(list(zip(QUERIES, PASSAGES, strict=True)))
    assert [each.score for each in ours.predict(QUERIES, PASSAGES)] == pytest.approx(expected, abs=1e-5)
    (folder / "modules.json").unlink()  # without it, the other file says nothing to the library either
    theirs, ours = library.CrossEncoder(str(folder), device="cpu"), load(folder)
    assert ours.usual == theirs.max_seq_length == 16


@pytest.mark.parametrize("cls", ["SentenceTransformer", "CrossEncoder"])
@pytest.mark.parametrize(("settings", "said"), [
    ({"processing_kwargs": {"text": {"max_length": 12, "truncation": True}}}, "processing_kwargs in "),
    ({"processing_kwargs": {"text": {"add_special_tokens": False}}}, "processing_kwargs in sentence_bert_"),
    ({"processor_kwargs": {"model_max_length": 12}}, "processor_kwargs in "),
    ({"tokenizer_args": {"model_max_length": 12}}, r"tokenizer_args in .* is \{'model_max_length': 12\}"),
    ({"config_args": {"hidden_act": "relu"}}, "config_args in "),
    ({"query_expansion": {"length": 32}}, "query_expansion in "),
    ({"query_length": 8}, "query_length in .* is 8, which is not possible here: remove it"),
    ({"document_length": 8}, "document_length in "),
    ({"tokenizer_name_or_path": "other"}, "tokenizer_name_or_path in "),
    ({"max_seq_length": True}, "max_seq_length is True, expected a whole number"),
    ({"transformer_task": "fill-mask"}, "transformer_task in .* is 'fill-mask', expected '"),
    ({"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
     "modality_config in .*'pooler_output'} of texts, expected {'method': 'forward'"),
    ({"modality_config": 3}, "says 3 of texts"),
])  # fmt: skip
def test_settings_that_cannot_be_followed(cls, settings, said, bodies, tmp_path):
    with pytest.raises(EngineError, match=said) as error:
        load(encoder(bodies, tmp_path / "in", cls, **settings))
    assert "\n" not in str(error.value)


def test_settings_that_say_nothing(bodies, tmp_path):
    folder = encoder(
        bodies,
        tmp_path / "in",
        processing_kwargs={},
        processor_kwargs={"trust_remote_code": True},
        tokenizer_args=None,
        query_expansion=None,
        unpad_inputs=False,
    )
    assert read_sentence_settings(Folder(folder), "feature-extraction") == SentenceSettings(None, False)


def test_a_cross_encoder_with_another_module(bodies, tmp_path):
    folder = encoder(bodies, tmp_path / "in", "CrossEncoder")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append(modules[0] | {"path": "1_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EngineError, match=r"has the modules Transformer, Dense; allowed is one Transformer"):
        load(folder)
