import numpy as np
import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from fineprune_runtime import EngineError
from fineprune_runtime.relative import REACH, bucket, relative_bias

CONFIG = {"model_type": "mpnet", "num_attention_heads": 2}
TABLE = np.arange(64, dtype=np.float32).reshape(32, 2)


def test_each_half_of_the_buckets():
    ends = [0, 1, 7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 5000]
    places = [0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15]
    assert [bucket(-distance) for distance in ends] == places
    assert [bucket(distance) for distance in ends[1:]] == [place + 16 for place in places[1:]]


def test_the_buckets_are_those_of_torch():
    distances = torch.arange(-700, 701)
    expected = MPNetEncoder.relative_position_bucket(distances).tolist()
    assert [bucket(distance) for distance in distances.tolist()] == expected
    assert len(set(expected[: 701 - REACH])) == len(set(expected[700 + REACH :])) == 1  # what REACH says


def test_a_row_for_each_head():
    asked = []

    def read(name, shape):
        asked.append((name, shape))
        return TABLE

    bias = relative_bias(CONFIG, read, "mpnet.")
    assert asked == [("mpnet.encoder.relative_attention_bias.weight", (32, 2))]
    assert bias.shape == (2, 2 * REACH + 1)
    # Distances -1, 0, 1, 8 and the ends: buckets 1, 0, 17, 24, 15 and 31.
    assert bias[0, [REACH - 1, REACH, REACH + 1, REACH + 8, 0, -1]].tolist() == [2, 0, 34, 48, 30, 62]
    assert (bias[1] == bias[0] + 1).all()
    assert relative_bias({"model_type": "bert"}, read, "bert.") is None


@pytest.mark.parametrize("shape", [(31, 2), (32, 3), (32,), (0,)])
def test_a_table_of_another_shape(shape):
    with pytest.raises(EngineError, match=r"^encoder.relative_attention_bias.weight is of shape .*\(32, 2\)"):
        relative_bias(CONFIG, lambda name, _: np.zeros(shape, np.float32), "")


@pytest.mark.parametrize("count", [16, 64, "32", None])
def test_another_number_of_buckets(count):
    with pytest.raises(EngineError, match=r"relative_attention_num_buckets in config.json is .*computes 32"):
        relative_bias(CONFIG | {"relative_attention_num_buckets": count}, lambda name, _: TABLE, "")
