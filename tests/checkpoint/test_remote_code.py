"""Code that comes with a model runs only where the caller says so, and nothing asks on standard input."""

import builtins
import json

import pytest
from support import tiny_bert

from fineprune import FinepruneError, load
from fineprune.checkpoint.loading import open_model
from fineprune.checkpoint.remote_code import refuse_code
from fineprune.tasks.modeling import build_model
from fineprune.tasks.text.data import ClassificationData, Examples

TWO = ClassificationData(None, Examples([]), ("neg", "pos"), "accuracy")
CODE = """
import pathlib
from transformers import BertConfig, BertForSequenceClassification
pathlib.Path({ran!r}).touch()
class C(BertConfig):
    model_type = "evilbert"
class M(BertForSequenceClassification):
    config_class = C
"""


@pytest.fixture
def never_asked(monkeypatch):
    def ask(*_):
        raise AssertionError("somebody asked on standard input")

    monkeypatch.setattr(builtins, "input", ask)


@pytest.fixture
def stranger(tokenizer, tmp_path):
    """A folder whose model takes the code in it, which leaves a file `ran`."""
    folder = tmp_path / "stranger"
    tiny_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "evil.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    return folder


def settings(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


AUTO = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "evilbert", "auto_map": AUTO},
        {"model_type": "evilbert", "auto_map": AUTO, "architectures": ["M"]},
        {"model_type": "evilbert", "auto_map": {"AutoModel": "evil.M"}},
    ],
)
def test_code_of_a_folder_does_not_run(config, stranger, never_asked, tmp_path):
    settings(stranger, **config)
    for opened in (load, open_model, lambda folder: build_model(str(folder), TWO)):
        with pytest.raises(FinepruneError, match=r"opened by Python code .*read that code"):
            opened(stranger)
    assert not (tmp_path / "ran").exists()


def test_a_class_that_transformers_lacks(stranger, never_asked, tmp_path):
    settings(stranger, auto_map=AUTO, architectures=["M"])
    with pytest.raises(FinepruneError, match="opened by Python code that comes with it"):
        load(stranger)
    assert not (tmp_path / "ran").exists()


def test_code_runs_where_it_is_asked_for(stranger, never_asked, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    settings(stranger, model_type="evilbert", auto_map=AUTO, architectures=["M"])
    assert type(load(stranger, trust_remote_code=True)).__name__ == "M"
    assert (tmp_path / "ran").exists()
    assert type(open_model(stranger, trust_remote_code=True).model).__name__ == "M"
    model, _ = build_model(str(stranger), TWO, trust_remote_code=True)
    assert type(model).__name__ == "M"


def test_a_model_that_transformers_knows_needs_no_code(stranger, never_asked, tmp_path):
    settings(stranger, auto_map=AUTO)
    assert type(load(stranger)).__name__ == "BertForSequenceClassification"
    build_model(str(stranger), TWO)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "some/kernel"},
        {"_attn_implementation": "some/kernel"},
        {"text_config": {"attn_implementation": "some/kernel@main"}},
    ],
)
def test_kernels_of_the_hub_are_code_too(config, stranger):
    with pytest.raises(FinepruneError, match=r"implementation 'some/kernel.*names code on the hub"):
        refuse_code(config, "m")
    settings(stranger, **config)
    for opened in (load, lambda folder: build_model(str(folder), TWO)):
        with pytest.raises(FinepruneError, match="names code on the hub"):
            opened(stranger)
    refuse_code({"attn_implementation": "sdpa", "auto_map": {}}, "m")


def test_code_of_a_tokenizer_does_not_run(stranger, never_asked, tmp_path):
    path = stranger / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}))
    open_model(stranger)  # tokenizer.json is enough
    (stranger / "tokenizer.json").unlink()
    with pytest.raises(FinepruneError):
        build_model(str(stranger), TWO)
    assert not (tmp_path / "ran").exists()
