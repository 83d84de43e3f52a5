import numpy as np
import pytest
import torch
from runtime.models import KINDS, TASKS, TEXTS, make_model, make_tokenizer
from runtime.reference import reference_encoder

from fineprune_runtime import EngineError, Matrix
from fineprune_runtime.architectures import (
    ARCHITECTURES,
    architecture,
    epsilon,
    settings,
    task,
    whole,
)
from fineprune_runtime.disentangled import relative_positions
from fineprune_runtime.encoder_layers import each_layer, matrix_shapes
from fineprune_runtime.relative import relative_bias

BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 12,
}


def layers_of(model, prefix):
    """The layers of a live model, through the two callables."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    return list(each_layer(config, lambda name: Matrix.from_dense(state[name]), state.__getitem__, prefix))


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_are_those_of_torch(kind):
    model = make_model(kind, "text")
    batch = make_tokenizer(kind)(TEXTS[:5], padding=True, truncation=True, max_length=30, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].numpy()
    made = layers_of(model, f"{ARCHITECTURES[kind].base}.")
    assert len(made) == 2
    config, state = model.config.to_dict(), model.state_dict()
    prefix = f"{ARCHITECTURES[kind].base}."
    tables = {
        "bias": relative_bias(config, lambda name, _: state[name].numpy(), prefix),
        "relative": relative_positions(config, lambda name, _: state[name].numpy(), prefix),
    }
    found = reference_encoder(made, states[0].numpy(), mask, **settings(config), **tables)
    expected = states[-1].numpy() * mask[:, :, None]
    assert np.abs(found - expected).max() < 1e-5


def test_a_layer_is_made_when_it_is_asked_for():
    model = make_model("bert", "text")
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    asked = []

    def matrix(name):
        asked.append(name)
        return Matrix.from_dense(state[name])

    layers = each_layer(model.config.to_dict(), matrix, state.__getitem__, "bert.")
    assert asked == []
    next(layers)
    assert len(asked) == 6
    assert all("layer.0." in name for name in asked)


def test_the_layers_of_a_base_model_have_no_prefix():
    model = make_model("bert", "text")
    whole_model, base = layers_of(model, "bert."), layers_of(model.bert, "")
    assert np.array_equal(whole_model[1].ffn_out.weight.values, base[1].ffn_out.weight.values)


@pytest.mark.parametrize(("name", "expected"), [
    ("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu", "relu"),
])  # fmt: skip
def test_activations_are_those_of_torch(name, expected):
    model = make_model("bert", "text", hidden_act=name)
    config = model.config.to_dict()
    assert settings(config) == {
        "head_dim": 8,
        "activation": expected,
        "epsilon": 1e-12,
        "pre_norm": False,
    }
    states = model(torch.tensor([[2, 5, 6, 3]]), output_hidden_states=True).hidden_states
    found = reference_encoder(layers_of(model, "bert."), states[0].detach(), None, **settings(config))
    assert np.abs(found - states[-1].detach().numpy()).max() < 1e-5


def test_settings_by_their_own_names():
    distil = {
        "model_type": "distilbert",
        "dim": 12,
        "n_heads": 3,
        "activation": "relu",
        "layer_norm_eps": 0.5,
    }
    plain = {"head_dim": 4, "pre_norm": False}
    assert settings(distil) == plain | {"activation": "relu", "epsilon": 1e-12}
    assert settings(BERT | {"layer_norm_eps": 1e-5}) == plain | {"activation": "gelu", "epsilon": 1e-5}
    modern = {"model_type": "modernbert", "hidden_size": 8, "num_attention_heads": 2}
    own = {"hidden_activation": "relu", "norm_eps": 0.5, "hidden_act": "gelu", "layer_norm_eps": 0.25}
    assert settings(modern | own) == {
        "head_dim": 4,
        "activation": "relu",
        "epsilon": 0.5,
        "pre_norm": True,
    }
    assert settings(modern)["epsilon"] == 1e-5


def test_shapes_of_the_matrices():
    assert matrix_shapes(BERT) == {
        "attention.self.query.weight": (8, 8),
        "attention.self.key.weight": (8, 8),
        "attention.self.value.weight": (8, 8),
        "attention.output.dense.weight": (8, 8),
        "intermediate.dense.weight": (12, 8),
        "output.dense.weight": (8, 12),
    }


def test_shapes_of_matrices_in_one():
    assert matrix_shapes(BERT | {"model_type": "modernbert"}) == {
        "attn.Wqkv.weight": (24, 8),
        "attn.Wo.weight": (8, 8),
        "mlp.Wi.weight": (24, 8),
        "mlp.Wo.weight": (8, 12),
    }


@pytest.mark.parametrize("kind", TASKS)
def test_the_task_is_in_the_name_of_the_class(kind):
    assert task({"architectures": [f"Bert{TASKS[kind]}"]}) == kind


@pytest.mark.parametrize("known", [["BertForMaskedLM"], ["BertModel"], [], None, "x", [3]])
def test_other_heads_are_refused(known):
    with pytest.raises(EngineError, match=r"architectures .*ForSequenceClassification, ForTokenClass"):
        task({"architectures": known})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt2"},
            r"model_type is 'gpt2', .* it runs bert, distilbert, electra, mpnet, roberta",
        ),
        ({"model_type": "roberta-prelayernorm"}, "model_type is 'roberta-prelayernorm', which"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["bert"]}, "model_type is "),
        ({"is_decoder": True}, "this bert is a decoder; the engine runs encoders"),
        ({"add_cross_attention": True}, "is a decoder"),
        ({"position_embedding_type": "relative_key"}, "is 'relative_key', allowed is 'absolute'"),
        (
            {"hidden_act": "silu"},
            "hidden_act is 'silu'; the engine has gelu, gelu_new, gelu_pytorch_tanh, relu",
        ),
        ({"hidden_act": None}, "hidden_act is None"),
        ({"num_attention_heads": 3}, "3 heads cannot share a hidden size of 8"),
        ({"hidden_size": "8"}, "hidden_size in config.json is '8', expected a whole number"),
        (
            {"num_attention_heads": 0},
            r"attention heads in config.json: \{'num_attention_heads': 0\}, expected a whole",
        ),
        ({"num_hidden_layers": True}, "num_hidden_layers in config.json is True"),
        ({"intermediate_size": None}, "intermediate_size in config.json is None"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps in config.json is -1.0"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps in config.json is 'small'"),
    ],
)
def test_what_the_engine_cannot_run(changes, message):
    nothing = Matrix.from_dense(np.zeros((8, 8)))
    with pytest.raises(EngineError, match=message) as error:
        list(each_layer(BERT | changes, lambda name: nothing, lambda name: np.zeros(8), ""))
    assert "\n" not in str(error.value)


def test_a_missing_setting_has_a_default_or_is_named():
    assert whole(BERT, "type_vocab_size", 2) == 2
    assert epsilon({"model_type": "roberta"}) == 1e-12
    with pytest.raises(EngineError, match=r"vocab_size in config.json is None"):
        whole(BERT, "vocab_size")
    with pytest.raises(EngineError, match=r"dim in config.json is None"):
        whole({"model_type": "distilbert"}, "hidden_size")


def test_weights_of_another_shape():
    model = make_model("bert", "text")
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}

    def read(config, **changed):
        given = state | {name.replace("__", "."): array for name, array in changed.items()}
        return list(
            each_layer(config, lambda name: Matrix.from_dense(given[name]), given.__getitem__, "bert.")
        )

    config = model.config.to_dict()
    with pytest.raises(
        EngineError, match=r"layer.0.intermediate.dense.weight is of shape \(32, 16\), .*\(64, 16\)"
    ):
        read(config | {"intermediate_size": 64})
    first = "bert__encoder__layer__0__"
    with pytest.raises(EngineError, match=r"query.bias is of shape \(3,\), and config.json asks for \(16,\)"):
        read(config, **{f"{first}attention__self__query__bias": np.zeros(3, np.float32)})
    with pytest.raises(EngineError, match=r"output.LayerNorm.weight is of shape \(1, 16\)"):
        read(config, **{f"{first}output__LayerNorm__weight": np.zeros((1, 16), np.float32)})


def test_architectures_that_share_names():
    assert architecture({"model_type": "xlm-roberta"}) == architecture({"model_type": "roberta"})
