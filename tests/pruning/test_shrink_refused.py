"""What cannot be shrunk is refused in one line."""

import copy

import pytest
import torch
from pruning.test_shrink import wide_bert, without_neurons

from fineprune import FinepruneError, PruningConfig, prepare, shrink
from fineprune.pruning import shrink as shrinking
from fineprune.pruning.finalizing import masked_modules


def accelerated():
    model = wide_bert()
    model.bert.encoder.is_accelerated = True
    return model


def quantized():
    model = wide_bert()
    model.is_quantized = True
    return model


def prepared():
    model = wide_bert()
    prepare(model, PruningConfig("magnitude", 0.5), 10)
    assert any(masked_modules(model))
    return model


def with_adapter():
    import peft

    return peft.get_peft_model(wide_bert(), peft.LoraConfig(target_modules=["query"]))


def unseen():
    """The norm after each layer leaves nothing of it."""
    model = without_neurons(wide_bert(), 0, [3])
    for layer in model.bert.encoder.layer:
        torch.nn.init.zeros_(layer.output.LayerNorm.weight)
    return model


def with_nan():
    model = without_neurons(wide_bert(), 0, [3])
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    return model


def on_no_device():
    return wide_bert().to("meta")


def compiled():
    return torch.compile(wide_bert(), backend="eager")


def without_config():
    block = torch.nn.ModuleDict({"fc1": torch.nn.Linear(2, 3), "fc2": torch.nn.Linear(3, 2)})
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([block, copy.deepcopy(block)])
    torch.nn.init.zeros_(block["fc2"].weight)
    return model


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (dict, "model=dict: shrink takes a torch.nn.Module"),
        (accelerated, "accelerated.*: shrink it before accelerate, or load it again without"),
        (quantized, "quantized or packed"),
        (prepared, "prepared: its masks are not zeros yet; call finalize, then shrink"),
        (with_adapter, "carries an adapter; merge .merge_and_unload. or remove it before shrink"),
        (
            unseen,
            "neurons of bert.encoder.layer: noise in those .* so the probe shows nothing; give another one",
        ),
        (with_nan, "answers the probe with nan or inf: nothing can be proved; give another one"),
        (on_no_device, r"has no weights in memory .*: load it whole"),
        (compiled, r"the model is compiled \(torch.compile\); give the model itself, compiled._orig_mod"),
        (without_config, "has no config to make inputs from; give some with probe="),
    ],
)
def test_models_that_are_refused(make_one, message):
    with pytest.raises(FinepruneError, match=message) as raised:
        shrink(make_one())
    assert "\n" not in str(raised.value)


def test_a_sharded_model_is_refused(monkeypatch):
    monkeypatch.setattr(shrinking, "is_sharded", lambda _: True)
    with pytest.raises(FinepruneError, match="sharded over processes; load the result of gather_state_dict"):
        shrink(wide_bert())


@pytest.mark.parametrize("multiple", [0, -1, 1.5, True, None])
def test_multiples_that_are_refused(multiple):
    with pytest.raises(
        FinepruneError, match=f"round_to={multiple}: give a whole number of neurons, 1 or more"
    ):
        shrink(wide_bert(), round_to=multiple)


def test_a_probe_that_does_not_fit():
    model = without_neurons(wide_bert(), 0, [3])
    with pytest.raises(FinepruneError, match=r"does not take the inputs .*; give fitting ones with probe="):
        shrink(model, probe={"pixels": torch.zeros(2)})
    assert shrink(model, probe={"input_ids": torch.tensor([[1, 2, 3]])}).neurons[0].units[:4] == (0, 1, 2, 4)
