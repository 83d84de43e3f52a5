import math
from types import SimpleNamespace

import pytest
import torch
from architectures.models import ARCHITECTURES, make
from torch import nn

from fineprune import FinepruneError
from fineprune.pruning.probe import checked_outputs, difference, in_float32, outputs, probe_inputs


def fake(main, **config):
    """What `probe_inputs` looks at."""
    settings = SimpleNamespace(is_encoder_decoder=False, **config)
    settings.get_text_config = lambda: settings
    return SimpleNamespace(
        main_input_name=main, config=settings, device=torch.device("cpu"), dtype=torch.float16
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_takes_its_inputs(name):
    model = make(name)
    inputs = probe_inputs(model)
    assert all(torch.equal(tensor, probe_inputs(model)[name]) for name, tensor in inputs.items())
    answers = outputs(model, inputs)
    assert answers
    assert all(answer.isfinite().all() and answer.dtype == torch.float32 for answer in answers)
    assert answers[0][0].sub(answers[0][1]).abs().max() > 1e-3  # two different examples


@pytest.mark.parametrize("name", ["BartForSequenceClassification", "T5ForSequenceClassification"])
def test_classifiers_with_a_decoder_take_theirs(name):
    """They ask for as many ends of text in each row, and for an answer at each token."""
    import transformers

    kind = getattr(transformers, name)
    config = kind.config_class(
        d_model=16, vocab_size=6, num_layers=1, encoder_layers=1, decoder_layers=1, num_heads=2,
        encoder_attention_heads=2, decoder_attention_heads=2, d_kv=8, d_ff=8, eos_token_id=2, pad_token_id=1,
        decoder_start_token_id=1,
    )  # fmt: skip
    model = kind(config).eval()
    inputs = probe_inputs(model)
    assert (inputs["input_ids"] == 2).sum(1).tolist() == [1, 1]
    assert all(answer.isfinite().all() for answer in outputs(model, inputs))


def test_inputs_of_text():
    inputs = probe_inputs(fake("input_ids", vocab_size=7, max_position_embeddings=10, pad_token_id=0))
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "input_ids": (2, 10),
        "attention_mask": (2, 10),
    }
    assert inputs["attention_mask"].tolist() == [[1] * 5 + [0] * 5, [1] * 10]
    assert inputs["input_ids"].max() < 7
    for none in ({}, *({"max_position_embeddings": limit} for limit in (None, -1, 512))):  # -1: XLNet's
        assert probe_inputs(fake("input_ids", vocab_size=7, **none))["input_ids"].shape == (1, 16)


@pytest.mark.parametrize(("size", "sides"), [(6, (6, 6)), ((4, 8), (4, 8)), ([4, 8], (4, 8))])
def test_inputs_of_pixels(size, sides):
    inputs = probe_inputs(fake("pixel_values", image_size=size, num_channels=3))
    assert inputs["pixel_values"].shape == (2, 3, *sides)
    assert inputs["pixel_values"].dtype == torch.float16  # the model's


def test_inputs_of_sound():
    assert probe_inputs(fake("input_values"))["input_values"].shape == (2, 4000)


def test_inputs_of_another_length_and_seed():
    text = fake("input_ids", vocab_size=1000, max_position_embeddings=10, pad_token_id=0)
    assert probe_inputs(text, 6)["attention_mask"].tolist() == [[1] * 3 + [0] * 3, [1] * 6]
    assert probe_inputs(text, 11)["input_ids"].shape == (2, 10)
    assert not torch.equal(probe_inputs(text)["input_ids"], probe_inputs(text, seed=1)["input_ids"])
    assert probe_inputs(fake("input_values"), 6)["input_values"].shape == (2, 1500)


@pytest.mark.parametrize("main", ["input_features", "pixel_values"])  # pixels without a size
def test_inputs_that_cannot_be_made_up(main):
    with pytest.raises(FinepruneError, match=f"takes {main}, and no example of it can be made up; .*probe="):
        probe_inputs(fake(main))


class Odd(nn.Module):
    """Answers with everything that a model may answer with."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout(0.5)
        self.saw = None

    def forward(self, x):
        self.saw = (self.training, self.inner.training, torch.is_grad_enabled())
        if x is None:
            raise ValueError("nothing")
        return {
            "a": x.bfloat16(),
            "b": (x + 1, [x + 2, None]),
            "ids": torch.ones(2, dtype=torch.long),
            "c": object(),
        }


def test_all_outputs_in_order():
    model = Odd()
    answers = outputs(model, {"x": torch.zeros(2)})
    assert [answer.tolist() for answer in answers] == [[0, 0], [1, 1], [2, 2]]
    assert {answer.dtype for answer in answers} == {torch.float32}
    assert model.saw == (False, False, False)


def test_hidden_states_come_last_at_each_use_of_a_block():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Odd()

        def forward(self, x):
            self.block(x)
            return self.block(x + 5)["a"]

    model = Twice()
    answers = outputs(model, {"x": torch.zeros(1)}, [model.block])
    assert [answer.tolist() for answer in answers] == [[5], [0], [5]]
    assert not model.block._forward_hooks


def test_inputs_that_a_model_does_not_take():
    with pytest.raises(
        FinepruneError, match=r"Odd does not take the inputs to compare outputs on \(nothing\)"
    ):
        checked_outputs(Odd(), {"x": None})


def test_float32_for_a_while():
    model = nn.Sequential(nn.Linear(2, 2).half(), nn.Linear(2, 2), nn.Linear(2, 2).double())
    model.register_buffer("table", torch.ones(2, dtype=torch.bfloat16))
    weight = model[0].weight
    before = weight.clone()
    with in_float32(model):
        assert [tensor.dtype for tensor in (weight, model.table)] == [torch.float32] * 2
        assert model[2].weight.dtype == torch.float64
        model[0] = nn.Linear(2, 3)
    assert [model[0].weight.dtype, model[1].weight.dtype] == [torch.float16, torch.float32]
    assert model.table.dtype == torch.bfloat16
    assert weight.half().equal(before)


@pytest.mark.parametrize("value", [torch.zeros(2), None])
@pytest.mark.parametrize("modes", [(True, True), (True, False), (False, True), (False, False)])
def test_each_part_keeps_its_mode(value, modes):
    model = Odd()
    model.training, model.inner.training = modes
    if value is None:
        with pytest.raises(ValueError, match="nothing"):
            outputs(model, {"x": value})
    else:
        outputs(model, {"x": value})
    assert (model.training, model.inner.training) == modes


def test_difference_is_relative_to_each_output():
    ours = [torch.tensor([1.0, -4.0]), torch.tensor([100.0])]
    assert difference(ours, ours) == 0
    # |1 - 1.5| / 4 = 0.125 and |100 - 101| / 100 = 0.01
    assert difference(ours, [torch.tensor([1.5, -4.0]), torch.tensor([101.0])]) == 0.125
    assert difference([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert difference([torch.zeros(1)], [torch.ones(1)]) > 1e29
    assert difference([torch.zeros(0), torch.ones(1)], [torch.zeros(0), torch.ones(1)]) == 0


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([], []),
        ([torch.zeros(0)], [torch.zeros(0)]),
        ([torch.zeros(2)], [torch.zeros(3)]),
        ([torch.zeros(2)], []),
        ([torch.tensor([math.nan])], [torch.tensor([math.nan])]),
        ([torch.ones(1), torch.tensor([math.nan])], [torch.ones(1), torch.ones(1)]),
        ([torch.tensor([math.nan]), torch.ones(1)], [torch.ones(1), torch.ones(1)]),
        ([torch.tensor([math.inf])], [torch.tensor([math.inf])]),
    ],
)
def test_what_cannot_be_compared_is_no_number(ours, theirs):
    assert math.isnan(difference(ours, theirs))
