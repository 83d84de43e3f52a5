"""What an accelerated encoder makes of masks, and what it refuses."""

import copy

import pytest
import torch
from transformers import BertConfig

import fineprune
from fineprune import FinepruneError
from fineprune.checkpoint.packed_embedding import PackedEmbedding
from fineprune.inference.encoder_module import EncoderModule, encoder_name, keep_mask
from fineprune.pruning.probe import difference
from fineprune_runtime import codec, native

KEPT = torch.tensor([[True, True, False], [True, False, False]])
ADDED = torch.where(KEPT, 0.0, torch.finfo(torch.float32).min)


@pytest.mark.parametrize(
    "mask",
    [
        KEPT,
        KEPT.long(),
        KEPT.float(),
        KEPT[:, None, None],
        KEPT[:, None, None].expand(2, 4, 3, 3),
        KEPT[:, None, None].repeat(1, 1, 3, 1),
        ADDED[:, None, None],
        ADDED[:, None, None].expand(2, 1, 3, 3),
        torch.where(KEPT, 0.0, -torch.inf)[:, None, None],
        torch.where(KEPT, 0.0, -10000.0)[:, None, None].half(),
    ],
)
def test_each_form_of_a_mask(mask):
    assert torch.equal(keep_mask(mask, 2, 3), KEPT)


def test_one_for_all_texts_and_none():
    assert keep_mask(None, 2, 3) is None
    assert keep_mask(KEPT[:1, None, None], 4, 3).tolist() == [[True, True, False]] * 4


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3, 3).tril().bool().expand(2, 1, 3, 3), "differs between the queries"),
        (KEPT[None, :, None].expand(2, 2, 3, 3), r"differs between the queries \(or heads\)"),
        (torch.tensor([0.0, -0.5, 0.0]).expand(2, 1, 3, 3), "adds other numbers than 0"),
        (torch.tensor([0.0, torch.nan, 0.0]).expand(2, 1, 3, 3), "differs|adds other numbers"),
        (torch.ones(2, 3, 3), r"of shape \(2, 3, 3\): give one of shape \(2, 3\)"),
        (torch.ones(2, 4), r"of shape \(2, 4\): give one of shape \(2, 3\)"),
        (torch.ones(3, 3), r"of shape \(3, 3\): give one of shape \(2, 3\)"),
        (object(), "of type object: load the model with attn_implementation='sdpa'"),
    ],
)
def test_other_masks(mask, message):
    with pytest.raises(FinepruneError, match=message):
        keep_mask(mask, 2, 3)


pytestmark = pytest.mark.usefixtures("engine")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_of_four_dimensions_given_to_the_model(attention, make, ask, texts):
    model = make("bert")
    model.set_attn_implementation(attention)
    fast, inputs = fineprune.accelerate(copy.deepcopy(model)), texts(2, 6)
    kept = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    kept[1, :, :, 4:] = False
    inputs["attention_mask"] = torch.zeros(2, 1, 6, 6).masked_fill(~kept, torch.finfo(torch.float32).min)
    assert difference(ask(model, inputs), ask(fast, inputs)) < 1e-5
    inputs["attention_mask"] = torch.ones(6, 6).tril().log()[None, None].repeat(2, 1, 1, 1)
    with pytest.raises(FinepruneError, match="differs between the queries"):
        fast(**inputs)


def test_no_answer_where_there_is_no_token(make, texts):
    model, inputs = fineprune.accelerate(make("bert", kind="BertModel")), texts(2, 6, 2)
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    assert not hidden[0, 4:].any()
    assert hidden[0, :4].all()
    assert hidden[1].all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", [[0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1]])
def test_padding_on_either_side_and_holes(mask, attention, whole, make, texts):
    # Heads of texts read the first token, masked or not; those of tokens are compared where there is one.
    kind = type(make(whole)).__name__.rpartition("For")[0]
    for head in ("ForSequenceClassification", "ForTokenClassification"):
        model = make(whole, kind=kind + head)
        inputs = {**texts(2, 5), "attention_mask": torch.tensor([mask, [1, 1, 1, 1, 1]])}
        fast = fineprune.accelerate(copy.deepcopy(model))
        if whole == "deberta-v2":
            if not mask[0]:
                with pytest.raises(FinepruneError, match=r"hides the first token .* pad on the right"):
                    fast(**inputs)
                continue
        else:
            model.set_attn_implementation(attention)
            fast.set_attn_implementation(attention)
        with torch.no_grad():
            expected, found = model(**inputs).logits, fast(**inputs).logits
        rows = inputs["attention_mask"] == 1
        rows[:, 0] = True
        if head == "ForTokenClassification":
            expected, found = expected[rows], found[rows]
        assert (expected - found).abs().max() < 1e-5 * expected.abs().max()


def wide_mpnet(make, **settings):
    """An MPNet whose bias by distance decides much, with dead heads: one of them in each layer."""
    model = make("mpnet", kind="MPNetModel", **settings)
    with torch.no_grad():
        model.encoder.relative_attention_bias.weight.normal_(0, 2)
        model.encoder.layer[0].attention.attn.v.weight[:8] = 0
        model.encoder.layer[1].attention.attn.o.weight[:, 8:] = 0
    return model


def assert_as_torch(model, inputs, padding, besides=()):
    """Check what the whole encoder gives the tokens that are seen, and those of the columns `besides`."""
    fast = fineprune.accelerate(copy.deepcopy(model))
    if padding is not None:
        inputs["attention_mask"][0, padding] = 0
    with torch.no_grad():
        expected, found = model(**inputs).last_hidden_state, fast(**inputs).last_hidden_state
    rows = inputs["attention_mask"] == 1
    rows[:, list(besides)] = True
    assert (expected - found)[rows].abs().max() < 1e-5


@pytest.mark.parametrize("padding", [None, slice(50, None), slice(0, 30), slice(3, 90, 3)])
def test_mpnet_up_to_its_last_position_with_dead_heads(padding, make, texts):
    model = wide_mpnet(make, max_position_embeddings=202)
    assert_as_torch(model, texts(2, 200), padding)


def test_the_table_of_mpnet_may_be_packed(make, texts):
    model = wide_mpnet(make)
    table = model.encoder.relative_attention_bias
    blob = torch.from_numpy(codec.encode(table.weight.detach().numpy(), "int8").view("int8"))
    model.encoder.relative_attention_bias = PackedEmbedding(table, blob)
    fast, inputs = fineprune.accelerate(copy.deepcopy(model)), texts(2, 20)
    assert isinstance(fast.encoder, EncoderModule)
    with torch.no_grad():
        expected, found = model(**inputs).last_hidden_state, fast(**inputs).last_hidden_state
    assert (expected - found).abs().max() < 1e-5


def test_mpnet_with_another_table_runs_layer_by_layer(make):
    model = make("mpnet", relative_attention_num_buckets=40)
    message = "relative_attention_num_buckets in config.json is 40.*; its pruned linear layers run one by one"
    with pytest.warns(fineprune.FinepruneWarning, match=message):
        fineprune.accelerate(model)


@pytest.mark.filterwarnings("ignore::fineprune.FinepruneWarning")
def test_a_text_of_masked_tokens_only(make, texts):
    model = make("bert", density=1.0)  # no head without values, whose constant does not ask for a token
    inputs = {**texts(2, 5), "attention_mask": torch.tensor([[0] * 5, [1] * 5])}
    fast = fineprune.accelerate(copy.deepcopy(model))
    with torch.no_grad():
        expected, found = model(**inputs).logits, fast(**inputs).logits
    assert (expected - found).abs().max() < 1e-5 * expected.abs().max()


def modern(make, **settings):
    """A ModernBERT whose second layer sees 12 tokens to each side, with dead heads and neurons."""
    model = make(
        "modernbert", kind="ModernBertModel", max_position_embeddings=600, local_attention=25, **settings
    )
    with torch.no_grad():
        model.layers[0].attn.Wqkv.weight[2 * 16 : 2 * 16 + 8] = 0
        model.layers[1].attn.Wo.weight[:, 8:] = 0
        model.layers[1].mlp.Wi.weight[:7] = 0
        model.layers[2].mlp.Wi.weight[32:41] = 0
    return model


@pytest.mark.parametrize("padding", [None, slice(50, None), slice(0, 8), slice(0, 30), slice(3, 90, 3)])
@pytest.mark.parametrize("biases", [False, True])
def test_modernbert_on_texts_longer_than_its_windows(padding, biases, make, texts):
    model = modern(make, norm_bias=biases, attention_bias=biases, mlp_bias=biases)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1 - biases, 0.3)
    assert_as_torch(model, texts(2, 500), padding, [0])  # with nothing to see in its window, too


def test_modernbert_counts_positions_from_0(make, texts):
    model, inputs = fineprune.accelerate(modern(make)), texts(2, 9)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        assert torch.equal(model(**inputs, position_ids=torch.arange(9)[None]).last_hidden_state, expected)
    with pytest.raises(FinepruneError, match="position_ids: an accelerated encoder counts tokens from 0"):
        model(**inputs, position_ids=torch.arange(9)[None].flip(1))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"layer_types": ["sliding_attention"] * 3}, "none of this modernbert's layers sees all tokens"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0}
                }
            },
            "the engine has the rope_type 'default'",
        ),
    ],
)
def test_a_modernbert_that_the_engine_has_not(settings, reason, make):
    with pytest.warns(fineprune.FinepruneWarning, match=f"{reason}.*its pruned linear layers run one by one"):
        fineprune.accelerate(make("modernbert", **settings))


@pytest.mark.parametrize("padding", [None, slice(50, None), slice(3, 90, 3)])
@pytest.mark.parametrize(
    "settings",
    [
        {"share_att_key": True, "position_biased_input": False, "embedding_size": 8},
        {"pos_att_type": ["c2p"], "position_buckets": -1, "norm_rel_ebd": "none"},
        {"pos_att_type": "p2c", "position_buckets": 64},
        {"relative_attention": False, "pos_att_type": None},
    ],
)
def test_deberta_at_every_distance_with_dead_heads(settings, padding, make, texts):
    model = make("deberta-v2", kind="DebertaV2Model", max_position_embeddings=200, **settings)
    with torch.no_grad():
        model.encoder.layer[0].attention.self.value_proj.weight[:8] = 0
        model.encoder.layer[1].attention.output.dense.weight[:, 8:] = 0
    assert_as_torch(model, texts(2, 200), padding)


def test_a_deberta_with_a_convolution_runs_layer_by_layer(make):
    with pytest.warns(fineprune.FinepruneWarning, match="conv_kernel_size .* is 3; .* run one by one"):
        fineprune.accelerate(make("deberta-v2", conv_kernel_size=3))


@pytest.mark.parametrize("dtype", native.dtypes())
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38])
@pytest.mark.parametrize("name", ["bert", "albert"])
@pytest.mark.filterwarnings("ignore::fineprune.FinepruneWarning")
def test_what_is_nan_in_torch_is_nan(name, value, dtype, make, texts):
    model, inputs = make(name), texts(2, 6)
    inputs["input_ids"] = torch.tensor([[3, 4, 5, 6, 7, 8], [3, 4, 5, 9, 7, 8]])
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = value
        assert model(**inputs).logits.isnan().tolist() == [[False] * 2, [True] * 2]
        assert fineprune.accelerate(model, dtype=dtype)(**inputs).logits.isnan().tolist() == [
            [False] * 2,
            [True] * 2,
        ]


@pytest.mark.parametrize("by_config", [False, True])
@pytest.mark.parametrize("what", ["output_hidden_states", "output_attentions"])
def test_inner_states(what, by_config, whole, make, texts):
    model = make(whole)
    model.set_attn_implementation("eager")
    fineprune.accelerate(model)
    inputs = texts(2, 6)
    if by_config:
        setattr(model.config, what, True)
        with torch.no_grad():
            assert model(**inputs, **{what: False})[0].isfinite().all()
    with pytest.raises(FinepruneError, match=f"{what}=True: .* load the model again without accelerate"):
        model(**inputs, **({} if by_config else {what: True}))


def test_states_of_others(make, texts):
    from transformers import DynamicCache

    model, inputs = fineprune.accelerate(make("bert", kind="BertModel")), texts(2, 6)
    with pytest.raises(FinepruneError, match="past_key_values: an accelerated encoder"):
        model(**inputs, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(FinepruneError, match="encoder_hidden_states: an accelerated encoder"):
        model(**inputs, encoder_hidden_states=torch.zeros(2, 6, 16))
    with pytest.raises(
        FinepruneError, match=r"is_causal=True: .*sees all tokens|differs between the queries"
    ):
        model(**inputs, is_causal=True)


def test_another_device(make):
    model = fineprune.accelerate(make("bert", kind="BertModel"))
    with pytest.raises(FinepruneError, match="runs on the CPU; its input is on meta"):
        model.encoder(torch.zeros(1, 2, 16, device="meta"))


def test_which_models_have_an_encoder(whole, single, make):
    model = make(whole)
    assert encoder_name(model) is None
    names = {"distilbert": "transformer", "modernbert": "layers"}
    assert encoder_name(model.base_model) == names.get(whole, "encoder")
    assert all(encoder_name(module) is None for module in make(single).modules())
    other = torch.nn.Module()
    other.config, other.encoder = BertConfig(), torch.nn.Linear(2, 2)
    assert encoder_name(other) is None


def test_it_says_what_it_holds(make):
    model = fineprune.accelerate(make("bert"))
    encoder = model.bert.encoder
    assert f"level={encoder.engine.level}, dtype=float32, bytes={encoder.engine.nbytes}" in repr(model)
