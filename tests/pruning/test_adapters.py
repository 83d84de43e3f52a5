"""LoRA on a model with zeros: only the adapters train, and the merged model keeps every zero."""

import copy

import peft
import pytest
import torch
from support import tiny_bert

from fineprune import FinepruneError, PruningConfig, finalize, prepare, summary
from fineprune.pruning.adapters import hold_zeros
from fineprune.pruning.targets import find_targets

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

KEEP_ZEROS = PruningConfig("keep_zeros")
STEPS = 10


def gpt2():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=12, **ends)
    )


MODELS = {
    "bert": (tiny_bert, {"target_modules": ["query", "value", "dense"]}),
    "bert, with biases": (tiny_bert, {"target_modules": ["query"], "lora_bias": True}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
}


def sparse(make=tiny_bert):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for module in find_targets(model).values():
            module.weight[torch.rand(module.weight.shape) < 0.7] = 0
    return model


def adapted(model, **settings):
    torch.manual_seed(1)
    settings = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"]} | settings
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def nonzero(model):
    return {name: module.weight != 0 for name, module in find_targets(model).items()}


def train(model, pruner, steps=STEPS):
    optimizer = torch.optim.AdamW(pruner.parameter_groups(3e-2, weight_decay=0.1))
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        tokens = torch.randint(1, 30, (8, 12), generator=generator)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens[:, 0] % 2).loss.backward()
        optimizer.step()
        pruner.step()
    model.eval()
    return tokens


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_trained_under_frozen_and_merged(name, safe):
    make, settings = MODELS[name]
    dense_zeros = nonzero(sparse(make))
    model = adapted(sparse(make), lora_dropout=0.1, **settings)
    before = {n: parameter.clone() for n, parameter in model.named_parameters()}
    pruner = prepare(model, KEEP_ZEROS, STEPS)
    assert len(pruner.targets) == len(dense_zeros)  # and no part of an adapter
    tokens = train(model, pruner)
    with torch.no_grad():
        trained = model(input_ids=tokens).logits
        finalize(model)
        assert torch.equal(model(input_ids=tokens).logits, trained)
        changed = {n for n, parameter in model.named_parameters() if not torch.equal(parameter, before[n])}
        assert changed
        assert all(".lora_" in n or ".modules_to_save." in n for n in changed)
        merged = model.merge_and_unload(safe_merge=safe)
        assert torch.allclose(merged(input_ids=tokens).logits, trained, atol=1e-5)
    after = nonzero(merged)
    assert after.keys() == dense_zeros.keys()
    assert all(torch.equal(after[n], dense_zeros[n]) for n in after)
    original = dict(sparse(make).named_parameters())
    moved = [
        n for n in after if not torch.equal(merged.get_parameter(f"{n}.weight"), original[f"{n}.weight"])
    ]
    assert len(moved) == sum(n.endswith(tuple(settings["target_modules"])) for n in after)


def test_the_same_merge_without_us_fills_the_zeros():
    """What it is for: plain LoRA on the same model, merged."""
    model = adapted(sparse())
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_B"):
                module.lora_B["default"].weight.fill_(0.1)
    assert summary(model.merge_and_unload()).density > summary(sparse()).density


def test_prepared_first_then_adapted():
    model = sparse()
    kept = summary(model).kept
    pruner = prepare(model, KEEP_ZEROS, STEPS)
    model = adapted(model)
    tokens = train(model, pruner)
    trained = model(input_ids=tokens).logits
    merged = finalize(model).merge_and_unload()
    assert torch.allclose(merged(input_ids=tokens).logits, trained, atol=1e-5)
    assert summary(merged).kept == kept


def test_an_adapter_that_is_loaded_is_held_by_hand(tmp_path):
    model = adapted(sparse())
    tokens = train(model, prepare(model, KEEP_ZEROS, STEPS))
    trained = finalize(model)(input_ids=tokens).logits
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(sparse(), tmp_path).eval()
    assert not torch.allclose(loaded(input_ids=tokens).logits, trained, atol=1e-5)
    assert hold_zeros(loaded) == 4
    assert torch.equal(loaded(input_ids=tokens).logits, trained)
    loaded.merge_adapter()
    assert summary(loaded).kept == summary(sparse()).kept
    loaded.unmerge_adapter()
    assert torch.allclose(loaded(input_ids=tokens).logits, trained, atol=1e-5)
    with loaded.disable_adapter():
        base = loaded(input_ids=tokens).logits
    plain = sparse().eval()
    plain.classifier.load_state_dict(loaded.base_model.model.classifier.original_module.state_dict())
    assert torch.allclose(base, plain(input_ids=tokens).logits, atol=1e-6)


def test_the_update_is_the_masked_product():
    model = adapted(sparse(), lora_alpha=6, r=3)  # s = 2
    hold_zeros(model)
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.copy_(torch.randn(b.shape))
    weight, bias, x = layer.base_layer.weight, layer.base_layer.bias, torch.randn(5, 16)
    expected = x @ ((weight + 2 * b @ a) * (weight != 0)).T + bias
    assert torch.allclose(layer(x), expected, atol=1e-5)
    layer(x).sum().backward()
    # dL/dB = s (dL/dW' ⊙ M) A^T, dL/dW' the same row of sums of x for every output
    gradient = x.sum(0).expand(16, 16) * (weight != 0)
    assert torch.allclose(b.grad, 2 * gradient @ a.detach().T, atol=1e-4)


def test_a_layer_without_zeros_stays_plain():
    model = adapted(sparse(), target_modules=["query", "pooler.dense"])
    assert hold_zeros(model) == 2
    assert model.base_model.model.bert.pooler.dense.lora_variant == {}
    assert hold_zeros(sparse()) == 0  # no adapters


def test_merged_before_it_is_final():
    model = adapted(sparse())
    prepare(model, KEEP_ZEROS, STEPS)
    with pytest.raises(FinepruneError, match=r"call fineprune\.finalize first"):
        model.merge_and_unload()


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"layer": "ia3"}])
def test_adapters_that_cannot_be_masked(settings):
    model = sparse()
    if "layer" in settings:
        config = peft.IA3Config(
            task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[], modules_to_save=None
        )
        model = peft.get_peft_model(model, config)
    else:
        model = adapted(model, **settings)
    keys = set(model.state_dict())
    with pytest.raises(FinepruneError, match="query: zeros can only be kept under plain LoRA") as error:
        prepare(model, KEEP_ZEROS, STEPS)
    assert "\n" not in str(error.value)
    assert set(model.state_dict()) == keys


def test_other_methods_refuse_adapters():
    model = adapted(sparse())
    before = copy.deepcopy(list(model.state_dict()))
    with pytest.raises(FinepruneError, match=r"query\.base_layer: has an adapter, .* what movement prunes"):
        prepare(model, PruningConfig(), STEPS)
    assert list(model.state_dict()) == before
    pruner = prepare(model, PruningConfig(targets=["intermediate.dense"]), STEPS)  # has none
    assert all(target.name.endswith("intermediate.dense") for target in pruner.targets)
