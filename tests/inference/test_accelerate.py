"""`fineprune.accelerate`: the same answers from the engine, and a word where that cannot be."""

import copy
import pickle

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import fineprune
from fineprune import FinepruneError, FinepruneWarning
from fineprune.checkpoint.loading import to_dense
from fineprune.checkpoint.packed_embedding import PackedEmbedding
from fineprune.checkpoint.packing import PackedLinear
from fineprune.inference.encoder_module import EncoderModule
from fineprune.inference.linear_module import SparseLinear
from fineprune.pruning.probe import difference, probe_inputs
from fineprune_runtime import native

pytestmark = pytest.mark.usefixtures("engine")


def parts(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


# -- answers -----------------------------------------------------------------------------------


def test_the_encoder_is_run_whole_and_answers_alike(whole, make, ask, texts):
    model = make(whole)
    fast = fineprune.accelerate(copy.deepcopy(model))
    (encoder,) = parts(fast, EncoderModule)
    assert not list(encoder.parameters())
    assert not parts(fast, SparseLinear)
    assert encoder.engine.dtype == "float32"
    assert encoder.engine.threads == 1  # as torch has in tests
    for batch, length, padded in [(1, 1, 0), (1, 33, 0), (3, 7, 2), (2, 34, 33)]:
        inputs = texts(batch, length, padded)
        assert difference(ask(model, inputs), ask(fast, inputs)) < 1e-5
        without = {"input_ids": inputs["input_ids"]}
        assert difference(ask(model, without), ask(fast, without)) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_kind_of_attention(attention, make, ask, texts):
    model = make("bert")
    model.set_attn_implementation(attention)
    fast, inputs = fineprune.accelerate(copy.deepcopy(model)), texts(3, 9, 4)
    assert difference(ask(model, inputs), ask(fast, inputs)) < 1e-5
    with torch.inference_mode():
        assert torch.equal(fast(**inputs).logits, ask(fast, inputs)[0])
    fast.set_attn_implementation("eager")
    assert difference(ask(model, inputs), ask(fast, inputs)) < 1e-5


def test_base_models_give_what_they_gave(whole, make, texts):
    base = type(make(whole).base_model).__name__
    model, inputs = make(whole, kind=base), texts(2, 5)
    fast = fineprune.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        before, after = model(**inputs), fast(**inputs)
        as_tuple = fast(**inputs, return_dict=False)
    assert type(before) is type(after)
    assert list(before) == list(after)
    assert torch.equal(as_tuple[0], after.last_hidden_state)
    assert torch.allclose(before.last_hidden_state, after.last_hidden_state, atol=1e-4)


@pytest.mark.parametrize(("dtype", "apart"), [("bfloat16", 0.05), ("int8", 0.1)])
def test_coarser_types(dtype, apart, whole, make, texts):
    if dtype not in native.dtypes():
        pytest.skip(f"this processor has no {dtype}")
    model, inputs = make(whole).base_model, texts(2, 16, 3)
    fast = fineprune.accelerate(copy.deepcopy(model), dtype=dtype, threads=2)
    (encoder,) = parts(fast, EncoderModule)
    assert (encoder.engine.dtype, encoder.engine.threads) == (dtype, 2)
    with torch.no_grad():
        here = inputs["attention_mask"] == 1
        before = model(**inputs).last_hidden_state[here]
        after = fast(**inputs).last_hidden_state[here]
    assert 0 < float((before - after).norm() / before.norm()) < apart


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_in_and_comes_out(dtype, make, ask, texts):
    model, inputs = make("bert"), texts(2, 8)
    fast = fineprune.accelerate(copy.deepcopy(model).to(dtype))
    with torch.no_grad():
        assert fast(**inputs).logits.dtype == dtype
    assert difference(ask(model, inputs), ask(fast, inputs)) < 0.1
    late = fineprune.accelerate(copy.deepcopy(model)).to(dtype)  # cast afterwards
    assert difference(ask(model, inputs), ask(late, inputs)) < 0.1


def test_pipelines(tokenizer, bert_config):
    for task, kind in [
        ("text-classification", transformers.BertForSequenceClassification),
        ("token-classification", transformers.BertForTokenClassification),
        ("fill-mask", transformers.BertForMaskedLM),
        ("feature-extraction", transformers.BertModel),
    ]:
        torch.manual_seed(0)
        model = kind(bert_config()).eval()
        answers = []
        for _ in range(2):
            run = transformers.pipeline(task, model=model, tokenizer=tokenizer)
            one_by_one = task in ("fill-mask", "feature-extraction")  # or padding is answered too
            answers.append(run(["good film [MASK] a", "bad [MASK] b"], batch_size=1 if one_by_one else 2))
            if not parts(model, EncoderModule):
                with pytest.warns(FinepruneWarning, match="is not pruned"):
                    fineprune.accelerate(model)
        assert _alike(*answers), task


def _alike(one, other):
    if isinstance(one, dict):
        return set(one) == set(other) and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    is_float = isinstance(one, (float, np.floating))
    return one == pytest.approx(other, rel=1e-3, abs=1e-4) if is_float else one == other


# -- where it does not run whole ---------------------------------------------------------------


def test_other_models_layer_by_layer(single, make, ask):
    model = make(single)
    inputs, layers = probe_inputs(model), len(fineprune.summary(model).layers)
    fast = copy.deepcopy(model)
    with pytest.warns(FinepruneWarning, match=f"does not run model_type '{single}' whole.* {layers} of them"):
        fineprune.accelerate(fast)
    assert len(parts(fast, SparseLinear)) == layers
    assert difference(ask(model, inputs), ask(fast, inputs)) < 1e-5
    half = {name: entry.half() if entry.is_floating_point() else entry for name, entry in inputs.items()}
    assert difference(ask(model, inputs), ask(fast.half(), half)) < 0.1


def test_text_is_generated(make):
    model = make("gpt2")
    fast, ids = copy.deepcopy(model), torch.tensor([[5, 7, 9]])
    with pytest.warns(FinepruneWarning, match="one by one"):
        fineprune.accelerate(fast)
    asked = {
        "max_new_tokens": 5,
        "do_sample": False,
        "attention_mask": torch.ones_like(ids),
        "pad_token_id": 0,
    }
    assert torch.equal(model.generate(ids, **asked), fast.generate(ids, **asked))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"is_decoder": True}, "this bert is a decoder"),
    ],
)
def test_a_bert_that_the_engine_has_not(settings, reason, make, ask, texts):
    model = make("bert", **settings)
    fast = copy.deepcopy(model)
    with pytest.warns(FinepruneWarning, match=f"BertForSequenceClassification: .*{reason}.*one by one"):
        fineprune.accelerate(fast)
    assert not parts(fast, EncoderModule)
    assert difference(ask(model, texts(2, 6)), ask(fast, texts(2, 6))) < 1e-5


def test_a_module_that_the_engine_does_not_know(make, ask, texts):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = make("bert")
    dense = model.bert.encoder.layer[1].output.dense
    dense.__class__ = Doubled
    fast = copy.deepcopy(model)
    with pytest.warns(FinepruneWarning, match=r"layer.1.output.dense is a Doubled.*11 of them; 1 stay dense"):
        fineprune.accelerate(fast)
    assert difference(ask(model, texts(2, 6)), ask(fast, texts(2, 6))) < 1e-5


def test_a_model_that_was_never_pruned(make, ask, texts):
    model = make("bert", density=1.0)
    fast = copy.deepcopy(model)
    with pytest.warns(
        FinepruneWarning, match="BertForSequenceClassification is not pruned: .* runs it dense"
    ):
        fineprune.accelerate(fast)
    assert difference(ask(model, texts(2, 6)), ask(fast, texts(2, 6))) < 1e-5
    other = make("vit", density=1.0)
    with pytest.warns(FinepruneWarning, match="no linear layer in it is pruned, and it stays as it is"):
        fineprune.accelerate(other)
    assert not parts(other, SparseLinear)


def test_any_module_with_sparse_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[:6] = 0
        model[2].weight[0, :4] = 0  # 7 eighths are left
    x = torch.randn(5, 8)
    with torch.no_grad():
        expected = model(x)
        with pytest.warns(FinepruneWarning, match="a model of this kind whole.*2 of them$"):
            assert fineprune.accelerate(model) is model
        assert [isinstance(module, SparseLinear) for module in model] == [True, False, True, False]
        assert torch.allclose(model(x), expected, atol=1e-6)
        assert torch.allclose(model(x[0]), expected[0], atol=1e-6)


def test_a_decoder_that_is_tied_to_a_table_stays(make, ask, texts):
    model = make("roberta")
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight[:40] = 0
    fast = fineprune.accelerate(copy.deepcopy(model))
    assert fast.lm_head.decoder.weight is fast.roberta.embeddings.word_embeddings.weight
    assert difference(ask(model, texts(2, 6)), ask(fast, texts(2, 6))) < 1e-5


# -- packed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["float32", "int8"])
@pytest.mark.parametrize("embeddings", ["keep", "int8"])
def test_a_model_loaded_packed(values, embeddings, whole, make, ask, texts, tmp_path):
    folder = fineprune.save_compact(make(whole), tmp_path / "m", values=values, embeddings=embeddings).folder
    model, packed = fineprune.load(folder), fineprune.load(folder, packed=True)
    fineprune.accelerate(packed)
    tied = whole == "roberta"  # its decoder
    assert len(parts(packed, PackedEmbedding)) == (embeddings == "int8" and not tied)
    assert not parts(packed, PackedLinear)
    inputs = texts(2, 9, 3)
    assert difference(ask(model, inputs), ask(packed, inputs)) < 1e-5


def test_packed_layers_of_other_models(single, make, ask, tmp_path):
    folder = fineprune.save_compact(make(single), tmp_path / "m", values="int8").folder
    model, packed = fineprune.load(folder), fineprune.load(folder, packed=True)
    with pytest.warns(FinepruneWarning, match="one by one"):
        fineprune.accelerate(packed)
    assert not parts(packed, PackedLinear)
    inputs = probe_inputs(model)
    assert difference(ask(model, inputs), ask(packed, inputs)) < 1e-5


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "bf16"}, "dtype='bf16': did you mean bfloat16.*allowed are float32, bfloat16, int8"),
        ({"dtype": torch.float32}, "dtype=torch.float32: did you mean float32"),
        ({"dtype": None}, "dtype=None: .*allowed are float32"),
        ({"threads": 0}, "threads=0: expected a whole number of 1 or more, or None"),
        ({"threads": 1.5}, "threads=1.5: expected a whole number"),
        ({"threads": True}, "threads=True: expected a whole number"),
    ],
)
def test_settings(settings, message, make):
    model = make("bert")
    with pytest.raises(FinepruneError, match=message):
        fineprune.accelerate(model, **settings)
    assert not parts(model, EncoderModule)


def test_a_type_that_the_processor_lacks(make, monkeypatch):
    monkeypatch.setattr(native, "dtypes", lambda level=None: ("float32",))
    with pytest.raises(FinepruneError, match="dtype='bfloat16': this processor has float32"):
        fineprune.accelerate(make("bert"), dtype="bfloat16")


def test_models_that_cannot_be(make):
    config = fineprune.PruningConfig(method="movement", density=0.5)
    pruner = fineprune.prepare(make("bert"), config, total_steps=10)
    with pytest.raises(FinepruneError, match=r"a pruner cannot be accelerated: fineprune.finalize"):
        fineprune.accelerate(pruner)
    with pytest.raises(FinepruneError, match=r"still being pruned: fineprune.finalize"):
        fineprune.accelerate(pruner.model)
    with pytest.raises(FinepruneError, match=r"model=str: accelerate takes a torch.nn.Module"):
        fineprune.accelerate("folder")
    with pytest.raises(FinepruneError, match="is on meta, and the engine runs on the CPU"):
        fineprune.accelerate(make("bert").to("meta"))
    model = fineprune.accelerate(make("bert"))
    with pytest.raises(FinepruneError, match=r"accelerated.*cannot be accelerated twice"):
        fineprune.accelerate(model)


@pytest.mark.parametrize(
    ("name", "layer"), [("bert", "bert.encoder.layer.0.output.dense"), ("gpt2", "transformer.h.1.mlp.c_fc")]
)
def test_weights_that_are_not_finite(name, layer, make):
    model = make(name)
    with torch.no_grad():
        model.get_submodule(layer).weight[0, 0] = torch.nan
    names = [type(module) for module in model.modules()]
    with pytest.raises(FinepruneError, match="not finite" if name == "bert" else f"{layer}: .*not finite"):
        fineprune.accelerate(model)
    assert names == [type(module) for module in model.modules()]


# -- afterwards --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.filterwarnings("ignore::fineprune.FinepruneWarning")
def test_no_way_back(name, make, texts):
    model, inputs = fineprune.accelerate(make(name).train()), texts(2, 6)
    assert not model.training
    with pytest.raises(FinepruneError, match=r"no gradient passes through.*train it before accelerate"):
        model(**inputs).logits.sum().backward()
    for parameter in model.parameters():  # the head alone
        parameter.requires_grad_(parameter.ndim == 1)
    with pytest.raises(FinepruneError, match="no gradient passes through"):
        model(**inputs).logits.sum().backward()
    model.train()
    with pytest.raises(FinepruneError, match="in training mode: call its eval"):
        model(**inputs)
    frozen = fineprune.accelerate(make(name).requires_grad_(False))
    assert not frozen(**inputs).logits.requires_grad


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.filterwarnings("ignore::fineprune.FinepruneWarning")
def test_what_needs_the_weights_says_so(name, make, tmp_path):
    model = make(name)
    state = model.state_dict()
    fineprune.accelerate(model)
    config = fineprune.PruningConfig(method="movement", density=0.5)
    for act, message in [
        (lambda: model.save_pretrained(tmp_path / "a"), "no weights to save: save it before accelerate"),
        (lambda: model.state_dict(), "no weights to save"),
        (lambda: fineprune.save_compact(model, tmp_path / "b"), "save it before accelerate"),
        (lambda: fineprune.save_delta(model, tmp_path / "x", tmp_path / "c"), "save it before accelerate"),
        (lambda: fineprune.export_model(model, None, tmp_path / "d", "onnx"), "export it before accelerate"),
        (lambda: to_dense(model), "load it again, without accelerate"),
        (lambda: fineprune.summary(model), "load it again, without accelerate"),
        (lambda: fineprune.prepare(model, config, 10), "load it again, without accelerate"),
        (lambda: model.load_state_dict(state), "load them before accelerate"),
        (lambda: pickle.dumps(model), "cannot be pickled: save it with save_compact"),
        (lambda: torch.save(model, tmp_path / "e"), "cannot be pickled"),
    ]:
        with pytest.raises(FinepruneError, match=message):
            act()
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_a_compact_model_is_not_saved_either(make, tmp_path):
    folder = fineprune.save_compact(make("bert"), tmp_path / "m").folder
    model = fineprune.accelerate(fineprune.load(folder))
    with pytest.raises(FinepruneError, match="no weights to save"):
        model.save_pretrained(tmp_path / "again")


def test_copies_share_the_engine(make, ask, texts):
    model = fineprune.accelerate(make("bert"))
    twin, inputs = copy.deepcopy(model), texts(2, 6)
    assert twin.bert.encoder is not model.bert.encoder
    assert twin.bert.encoder.engine is model.bert.encoder.engine
    expected = ask(model, inputs)
    del model
    assert all(map(torch.equal, expected, ask(twin, inputs)))


@pytest.mark.parametrize(("cores", "expected"), [(4, 2), (1, 1)])
def test_threads_are_those_that_torch_has_at_the_call(cores, expected, make, monkeypatch):
    monkeypatch.setattr("fineprune.inference.accelerate.usable_processors", lambda: cores)
    torch.set_num_threads(2)
    try:
        model = fineprune.accelerate(make("bert"))
    finally:
        torch.set_num_threads(1)
    assert model.bert.encoder.engine.threads == expected
