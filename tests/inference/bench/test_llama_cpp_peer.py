"""The peer llama.cpp: what it is given, what comes back, and models that it does not run."""

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from fineprune import FinepruneError
from fineprune.inference.bench import llama_cpp_peer
from fineprune.inference.bench.llama_cpp_peer import check, encoder_in_llama_cpp
from fineprune.inference.bench.peers import PEERS, Job, missing
from fineprune.pruning.layout import layout_of
from fineprune.pruning.resizing import resize


def batch_of(tokens):
    """Return what stands for a batch of llama.cpp, with room for `tokens` tokens."""

    def room(kind, entries):
        return ctypes.cast((kind * entries)(), ctypes.POINTER(kind))

    entries = {name: room(ctypes.c_int32, tokens) for name in ("token", "pos", "n_seq_id")}
    rows = [room(ctypes.c_int32, 1) for _ in range(tokens)]
    return SimpleNamespace(**entries, seq_id=rows, logits=room(ctypes.c_int8, tokens), n_tokens=0)


@pytest.fixture
def library(monkeypatch):
    """`library(model)`: a llama_cpp that answers by that model's encoder; returns what it was given."""

    def use(model):
        given = SimpleNamespace(calls=[], states=None, loads=True)

        def encode(context, batch):
            number = batch.n_tokens
            tokens, positions = torch.tensor(batch.token[:number]), torch.tensor(batch.pos[:number])
            rows = torch.tensor([row[0] for row in batch.seq_id[:number]])
            given.calls.append(torch.bincount(rows).tolist())
            assert set(batch.n_seq_id[:number]) == set(batch.logits[:number]) == {1}
            ids = torch.zeros(int(rows.max()) + 1, int(positions.max()) + 1, dtype=torch.long)
            mask = torch.zeros_like(ids)
            ids[rows, positions], mask[rows, positions] = tokens.long(), 1
            with torch.no_grad():
                found = model.base_model(ids, attention_mask=mask)[0]
            given.states = found[rows, positions].contiguous().numpy()
            return 0

        module = ModuleType("llama_cpp")
        module.LLAMA_POOLING_TYPE_NONE = 0
        module.llama_backend_init = lambda: None
        module.llama_model_default_params = SimpleNamespace
        module.llama_model_load_from_file = lambda file, settings: "model" if given.loads else None
        module.llama_context_default_params = lambda: vars(given).setdefault("settings", SimpleNamespace())
        module.llama_init_from_model = lambda model, settings: "context"
        module.llama_batch_init = lambda tokens, embedding, sequences: batch_of(tokens)
        module.llama_model_n_embd = lambda _: model.config.hidden_size
        module.llama_encode = encode
        module.llama_get_embeddings = lambda context: given.states.ctypes.data_as(
            ctypes.POINTER(ctypes.c_float)
        )
        for name in ("llama_batch_free", "llama_free", "llama_model_free"):
            setattr(module, name, lambda _: None)
        monkeypatch.setitem(sys.modules, "llama_cpp", module)
        monkeypatch.setattr(llama_cpp_peer, "_write", lambda base, weights, file: None)
        return given

    return use


@pytest.mark.parametrize("name", ["bert", "camembert", "roberta"])
def test_the_head_reads_what_the_encoder_gives(name, make, texts, library, tmp_path):
    model, inputs = make(name), texts(2, 9, padded=3)
    inputs = {key: value.flip(0) for key, value in inputs.items()}
    given = library(model)
    changed = encoder_in_llama_cpp(model, "F32", (2, 9), 3, tmp_path / "llama")
    assert vars(given.settings) == {
        **dict.fromkeys(("n_ctx", "n_batch", "n_ubatch"), 18),
        **dict.fromkeys(("n_threads", "n_threads_batch"), 3),
        "n_seq_max": 2,
        "embeddings": True,
        "pooling_type": 0,
    }
    with torch.inference_mode():
        expected, found = model(**inputs), changed(**inputs)
    assert given.calls == [inputs["attention_mask"].sum(1).tolist()]
    kept = inputs["attention_mask"].bool()
    for key, value in expected.items():
        where = kept if value.dim() == 3 else slice(None)
        assert torch.allclose(found[key][where], value[where], atol=1e-6)


def test_many_texts_are_several_calls(make, texts, library, monkeypatch, tmp_path):
    monkeypatch.setattr(llama_cpp_peer, "TOKENS", 20)
    model, inputs = make("bert"), texts(3, 9)
    given = library(model)
    changed = encoder_in_llama_cpp(model, "F32", (3, 9), 1, tmp_path / "llama")
    with torch.inference_mode():
        assert torch.allclose(changed(**inputs).logits, model(**inputs).logits, atol=1e-6)
    assert given.calls == [[9, 9], [9]]


def test_inputs_that_it_does_not_take(make, texts, library, tmp_path):
    model, inputs = make("bert"), texts(2, 9)
    library(model)
    changed = encoder_in_llama_cpp(model, "F32", (2, 9), 1, tmp_path / "llama")
    with torch.inference_mode():
        types = torch.zeros(2, 9, dtype=torch.long)
        changed(**inputs | {"token_type_ids": types})
        types[1, 5:] = 1
        with pytest.raises(FinepruneError, match="takes token_type_ids of 0 alone"):
            changed(**inputs | {"token_type_ids": types})
        mask = torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
        with pytest.raises(FinepruneError, match="padding on the right alone"):
            changed(**inputs | {"attention_mask": mask})
        with pytest.raises(FinepruneError, match="texts of 20 tokens, and the context is for 18"):
            changed(**texts(2, 10))


def test_models_that_it_does_not_run(make):
    with pytest.raises(FinepruneError, match=r"distilbert: no encoder of llama\.cpp, which has bert"):
        check(make("distilbert"))
    with pytest.raises(FinepruneError, match=r"relu: llama\.cpp has no activation but gelu"):
        check(make("xlm-roberta"))
    model = make("bert")
    check(model)
    resize(model, {layout_of(model)[1].feed_forwards[0].name: 20})
    with pytest.raises(FinepruneError, match=r"neurons were removed, and llama\.cpp takes 32 in every layer"):
        check(model)
    resize(model, {layout_of(model)[1].attentions[0].name: 1})
    with pytest.raises(FinepruneError, match=r"heads were removed, and llama\.cpp takes 2 in every layer"):
        check(model)


def test_a_file_that_is_not_loaded(make, library, tmp_path):
    model = make("bert")
    library(model).loads = False
    with pytest.raises(FinepruneError, match=r"llama\.cpp cannot load the encoder"):
        encoder_in_llama_cpp(model, "F32", (2, 9), 1, tmp_path / "llama")


def test_it_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert missing(PEERS["llama.cpp"]) == "llama_cpp, gguf not installed"


@pytest.mark.parametrize("name", ["bert", "camembert", "roberta"])
def test_its_answers_are_those_of_torch(name, make, texts, tmp_path):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    # blocks of Q8_0 are 32 weights
    model, inputs = make(name, hidden_size=32), texts(3, 9, padded=2)
    inputs = {key: value.flip(0) for key, value in inputs.items()}
    with torch.inference_mode():
        expected = model(**inputs).logits.numpy()
    kept = inputs["attention_mask"].bool().numpy() if expected.ndim == 3 else slice(None)
    for peer in ("llama.cpp", "llama.cpp Q8_0"):
        found = PEERS[peer].build(Job(model, inputs, 1, tmp_path))()["logits"].numpy()
        off = np.abs(found - expected)[kept].max()
        assert off <= PEERS[peer].tolerance * np.abs(expected[kept]).max()
