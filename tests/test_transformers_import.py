"""Whichever is imported first, and what happens without fineprune. Each case is a process of its own."""

import importlib
import subprocess
import sys

import forked
import pytest
import torch

from fineprune import _transformers_import, save_compact
from fineprune.pruning.probe import outputs, probe_inputs

ORDERS = {
    "fineprune first": "import fineprune; assert not {'torch', 'transformers'} & set(sys.modules)",
    "both lazy": "import transformers, fineprune",
    "the loader first": "import transformers.modeling_utils, fineprune",
}
# fineprune_runtime, installed as editable, has a finder of its own.
CHECK = """
from transformers import AutoModelForSequenceClassification
import transformers.modeling_utils as watched, inspect, torch
torch.set_num_threads(1)
inputs, expected = torch.load(sys.argv[2])
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
assert torch.equal(model(**inputs).logits, expected[0])
assert 'fineprune' not in type(watched.__spec__.loader).__module__
assert 'fineprune' not in type(watched.__loader__).__module__
assert 'class PreTrainedModel' in inspect.getsource(watched)
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith('fineprune.')]
print('EQUAL')
"""
WITHOUT = """
import sys, transformers
for name in ('AutoModelForSequenceClassification', 'BertForSequenceClassification', 'AutoModel', 'BertModel'):
    for folder in sys.argv[1:]:
        try:
            getattr(transformers, name).from_pretrained(folder)
            print('LOADED', name)
        except Exception as error:
            print('stopped', type(error).__name__)
try:
    transformers.pipeline('text-classification', model=sys.argv[1], tokenizer=sys.argv[1])
    print('LOADED by pipeline')
except Exception as error:
    print('stopped', type(error).__name__)
assert 'fineprune' not in sys.modules
print(transformers.AutoModel.from_pretrained(sys.argv[1]))
"""


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`m`: a compact BERT with its tokenizer; `sharded`: in files; `expected.pt`: inputs and outputs."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.bert.encoder.parameters():
            parameter[parameter.abs() < 0.03] = 0
    place = tmp_path_factory.mktemp("models")
    words = BertTokenizer(vocab={word: index for index, word in enumerate(["[PAD]", "[UNK]", "a", "b"])})
    save_compact(model, place / "m", tokenizer=words)
    save_compact(model, place / "sharded", max_shard_size="6KB")
    torch.save((probe_inputs(model), outputs(model, probe_inputs(model))), place / "expected.pt")
    return place


@pytest.mark.parametrize("order", ORDERS)
def test_either_may_come_first(order, folder):
    run = forked.python if order == "the loader first" else python  # the server of the forked has imported it
    done = run(f"import sys; {ORDERS[order]}{CHECK}", folder / "m", folder / "expected.pt")
    assert done.stdout == "EQUAL\n", done.stderr


def test_without_fineprune_nothing_is_loaded(folder):
    done = forked.python(WITHOUT, folder / "m", folder / "sharded")
    assert done.returncode != 0
    assert done.stdout.splitlines() == ["stopped RuntimeError"] * 8 + ["stopped ValueError"], done.stderr
    assert "fineprune" in done.stderr  # transformers names what it does not know


def test_other_modules_are_left_alone(monkeypatch):
    finder = _transformers_import._Finder()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    assert finder.find_spec("transformers.models", None) is None
    assert finder in sys.meta_path


def test_a_module_that_is_not_there_and_one_that_fails(monkeypatch, tmp_path):
    """As where transformers is broken: its own error comes out, and the hook is not imported."""
    (tmp_path / "watched_broken.py").write_text("raise ValueError('broken')")
    (tmp_path / "watched_good.py").write_text("value = 7")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_transformers_import, "_HOOK", "watched_hook_that_is_not_there")
    for name, error, text in (
        ("watched_missing", ModuleNotFoundError, "watched_missing"),
        ("watched_broken", ValueError, "broken"),
        ("watched_good", ModuleNotFoundError, "watched_hook_that_is_not_there"),
    ):
        monkeypatch.setattr(_transformers_import, "_WATCHED", name)
        before = list(sys.meta_path)
        _transformers_import.hook()
        assert len(sys.meta_path) == len(before) + 1
        with pytest.raises(error, match=text):
            importlib.import_module(name)
        assert sys.meta_path == before
        assert name not in sys.modules
