import numpy as np
import pytest
import torch
from runtime.engines import floats, layer, linear
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from fineprune_runtime import Encoder, EngineError
from fineprune_runtime.disentangled import projections, relative_positions, rows
from fineprune_runtime.layers import Relative

BOTH = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
CONFIG = {"model_type": "deberta-v2", "hidden_size": 2, "position_buckets": 2, "max_position_embeddings": 5}
TABLE = np.arange(8, dtype=np.float32).reshape(4, 2)


def test_rows_by_hand():
    # Without buckets a row for each distance, from -2 to 1; farther ones as at the ends.
    assert rows(2, 2, -1).tolist() == [0, 1, 2, 3, 3]
    # 8 buckets of distances up to 16: each up to 4 has one, others 4 + log(size / 4) / log(15 / 4) x 3.
    half = [0, 1, 2, 3, 4, 5, 5, 6, 6, 6, 7, 7, 7, 7, 7, 7, 8]
    assert rows(8, 16, 8)[16:].tolist() == [8 + min(place, 7) for place in half]
    assert rows(8, 16, 8)[:16].tolist() == [8 - place for place in half[:0:-1]]


@pytest.mark.parametrize(("buckets", "most"), [(256, 512), (8, 40), (64, 512), (2, 5), (3, 9), (320, 2048)])
def test_rows_are_those_of_torch(buckets, most):
    distance = torch.arange(-2 * most, 2 * most + 1)
    places = make_log_bucket_position(distance, buckets, most).long() + buckets
    expected = places.clamp(0, 2 * buckets - 1).numpy()
    found = rows(buckets, most, buckets)
    assert (found[np.clip(distance.numpy(), -most, most) + most] == expected).all()


def test_which_projections_there_are():
    key, query = "attention.self.pos_key_proj", "attention.self.pos_query_proj"
    assert projections(CONFIG | BOTH) == {"c2p": key, "p2c": query}
    assert projections(CONFIG | BOTH | {"pos_att_type": "p2c|c2p"}) == {"c2p": key, "p2c": query}
    assert projections(CONFIG | BOTH | {"pos_att_type": ["c2p"]}) == {"c2p": key}
    assert projections(CONFIG | BOTH | {"share_att_key": True}) == {"c2p": None, "p2c": None}
    assert projections(CONFIG) == projections({"model_type": "bert"}) == {}


def test_the_embeddings_may_be_normed():
    vectors = {"encoder.LayerNorm.weight": floats([2, 2]), "encoder.LayerNorm.bias": floats([0, 1])}
    asked = {"x.encoder.rel_embeddings.weight": TABLE} | {f"x.{name}": each for name, each in vectors.items()}

    def read(name, shape):
        assert asked[name].shape == shape
        return asked[name]

    plain = relative_positions(CONFIG | BOTH, read, "x.")
    assert plain.embeddings.tolist() == TABLE.tolist()
    assert plain.rows.tolist() == rows(2, 5, 2).tolist()
    normed = relative_positions(CONFIG | BOTH | {"norm_rel_ebd": "layer_norm"}, read, "x.")
    assert normed.embeddings == pytest.approx(floats([[-2, 3]] * 4), abs=1e-5)
    assert relative_positions(CONFIG, read, "") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pos_att_type": ["p2p"]}, r"pos_att_type in config.json is \['p2p'\], allowed are c2p and p2c"),
        ({"pos_att_type": 3}, "pos_att_type in config.json is 3"),
        ({"pos_att_type": [["c2p"]]}, "pos_att_type in config.json is"),
        ({"relative_attention": False}, "relative_attention is False, which the engine cannot run"),
        ({"pos_att_type": None}, r"pos_att_type is \[\] and relative_attention is True, which the engine"),
        ({"conv_kernel_size": 3}, "conv_kernel_size in config.json is 3; the engine has no convolution"),
        ({"position_buckets": "8"}, "position_buckets in config.json is '8', expected -1, or 2 to 32768"),
        ({"max_relative_positions": 0}, "max_relative_positions in config.json is 0"),
        ({"position_buckets": 3}, r"rel_embeddings.weight is of shape \(4, 2\), .* asks for \(6, 2\)"),
    ],
)
def test_what_the_engine_cannot_run(settings, message):
    with pytest.raises(EngineError, match=message):
        relative_positions(CONFIG | BOTH | settings, lambda name, shape: TABLE, "encoder.")


# -- in the engine -----------------------------------------------------------------------------


def encoder(**changed):
    """Of one layer whose key and position are read, with three rows of distances."""
    relative = {"embeddings": floats([[1, 0, 0, 0]] * 3), "rows": np.array([0, 1, 2])} | changed.pop(
        "relative", {}
    )
    parts = {"value": linear(np.ones((1, 4))), "attention_output": linear(np.ones((4, 1)))}
    own = layer(**parts | {"position_key": linear(np.ones((1, 4)), [0])} | changed)
    return Encoder([own], head_dim=1, relative=Relative(**relative))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"relative": {"rows": np.array([0, 1, 3])}}, "distance 1: has row 3 of 3"),
        ({"relative": {"rows": np.array([-1, 1, 2])}}, "distance -1: has row -1 of 3"),
        ({"relative": {"rows": np.array([0, 1])}}, r"an array of shape \(2,\), expected \(1,\)"),
        ({"relative": {"rows": np.array([0])}}, "distances' reach is 0; 1 to 65536 can be run"),
        ({"relative": {"embeddings": floats(np.zeros((0, 4)))}}, "distances' rows is 0; 1 to 65536"),
        ({"relative": {"embeddings": floats(np.zeros((3, 5)))}}, r"inputs of shape \(3, 5\)"),
        (
            {"relative": {"embeddings": floats(np.full((3, 4), np.nan))}},
            "position keys: value 0 is not finite",
        ),
        ({"position_key": linear(np.ones((2, 4)))}, r"an array of shape \(2, 3\), expected \(1, 3\)"),
        ({"position_query": linear([[1, np.nan, 0, 0]])}, "position_query: value 1 is not finite"),
    ],
)
def test_positions_that_do_not_fit(changed, message):
    with pytest.raises(EngineError, match=message):
        encoder(**changed)


def test_distances_come_before_the_layers():
    with pytest.raises(EngineError, match="the distances of an encoder are set before its first layer"):
        encoder()._set_distances(Relative(floats([[0]]), np.zeros(3, np.int64)))


def test_projections_without_embeddings():
    own = layer(position_key=linear(np.ones((1, 4))))
    with pytest.raises(
        EngineError, match="position_key is given, and the encoder has no relative embeddings"
    ):
        Encoder([own], head_dim=1)
