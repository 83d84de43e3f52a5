"""Empty heads and neurons, counted by hand on matrices of a few rows."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fineprune.pruning.dead_units import LayerUnits, remaining_units
from fineprune_runtime import Layer, Linear, Matrix, Norm
from fineprune_runtime.architectures import ARCHITECTURES
from fineprune_runtime.shrink import shrunk


@dataclass(frozen=True)
class Counts:
    """What `remaining_units` reads of a matrix."""

    name: str
    shape: tuple[int, int]
    rows: NDArray[np.int32]
    columns: NDArray[np.int32]


def config(heads: int) -> dict[str, int]:
    return {"num_attention_heads": heads}


def counts(name: str, mask: list[list[int]]) -> Counts:
    array = np.array(mask, np.int32)
    rows, columns = array.shape
    return Counts(name, (rows, columns), array.sum(1), array.sum(0))


def ones(
    name: str, rows: int, columns: int, empty_rows: tuple[int, ...] = (), **more: tuple[int, ...]
) -> Counts:
    mask = np.ones((rows, columns), np.int32)
    mask[list(empty_rows)] = 0
    mask[:, list(more.get("empty_columns", ()))] = 0
    return Counts(name, (rows, columns), mask.sum(1), mask.sum(0))


def test_a_head_is_empty_without_rows_of_v_or_without_columns_of_o() -> None:
    value = counts("encoder.layer.2.attention.self.value", [[0] * 6] * 2 + [[1] * 6] * 4)
    output = counts("encoder.layer.2.attention.output.dense", [[1, 1, 1, 0, 0, 0]] * 6)
    # Heads of two: the first has no row of V, the third no column of O, the second has one left of O.
    assert remaining_units([value, output], config(3)) == [LayerUnits("encoder.layer", 2, 3, 1, 0, 0)]
    assert remaining_units([value], config(3)) == [LayerUnits("encoder.layer", 2, 3, 2, 0, 0)]
    assert remaining_units([output], config(3)) == [LayerUnits("encoder.layer", 2, 3, 2, 0, 0)]


def test_a_neuron_is_empty_without_its_row_or_without_its_column() -> None:
    inner = counts("encoder.layer.0.intermediate.dense", [[1, 0], [0, 0], [0, 1], [1, 1]])
    outer = counts("encoder.layer.0.output.dense", [[1, 1, 0, 0], [0, 0, 0, 1]])
    assert remaining_units([inner, outer], config(2)) == [LayerUnits("encoder.layer", 0, 0, 0, 4, 2)]
    assert remaining_units([inner], config(2)) == [LayerUnits("encoder.layer", 0, 0, 0, 4, 3)]
    assert remaining_units([outer], config(2)) == [LayerUnits("encoder.layer", 0, 0, 0, 4, 3)]


def test_layers_of_several_stacks_keep_their_order() -> None:
    names = [
        f"{stack}.block.{layer}.layer.1.DenseReluDense.wi"
        for stack in ("encoder", "decoder")
        for layer in (0, 1)
    ]
    found = remaining_units([ones(name, 4, 2) for name in names], config(2))
    assert [(layer.stack, layer.layer) for layer in found] == [
        *(("encoder.block", 0), ("encoder.block", 1)),
        *(("decoder.block", 0), ("decoder.block", 1)),
    ]


def test_the_two_attentions_of_a_decoders_layer_both_count() -> None:
    matrices = [
        ones("decoder.block.0.layer.0.SelfAttention.v", 4, 4, empty_rows=(0, 1)),
        ones("decoder.block.0.layer.0.SelfAttention.o", 4, 4),
        ones("decoder.block.0.layer.1.EncDecAttention.v", 4, 4),
        ones("decoder.block.0.layer.1.EncDecAttention.o", 4, 4, empty_columns=(0, 1, 2, 3)),
    ]
    assert remaining_units(matrices, config(2)) == [LayerUnits("decoder.block", 0, 4, 1, 0, 0)]


def test_gpt2_stores_its_matrices_turned() -> None:
    matrices = [  # hidden 4, two heads of 2, 8 neurons; as inputs x outputs
        ones("h.0.attn.c_attn", 4, 12, empty_columns=(8, 9)),  # V of the first head
        ones("h.0.attn.c_proj", 4, 4, empty_rows=(2,)),  # one of two inputs of the second
        ones("h.0.mlp.c_fc", 4, 8, empty_columns=(0, 1, 2)),
        ones("h.0.mlp.c_proj", 8, 4, empty_rows=(2, 3)),
    ]
    assert remaining_units(matrices, config(2)) == [LayerUnits("h", 0, 2, 1, 8, 4)]


def test_the_same_names_on_linear_layers_are_not_turned() -> None:
    matrices = [
        ones("h.0.attn.c_attn", 12, 4, empty_rows=(8, 9)),
        ones("h.0.attn.c_proj", 4, 4, empty_columns=(2, 3)),
        ones("h.0.mlp.c_fc", 8, 4, empty_rows=(0, 1, 2)),
        ones("h.0.mlp.c_proj", 4, 8, empty_columns=(2, 3)),
    ]
    assert remaining_units(matrices, config(2)) == [LayerUnits("h", 0, 2, 0, 8, 4)]


def test_a_square_one_alone_cannot_be_told() -> None:
    assert remaining_units([ones("h.0.attn.c_proj", 4, 4, empty_rows=(0, 1))], config(2)) == []


def test_gpt2s_cross_attention_has_k_and_v_in_one() -> None:
    matrices = [
        ones("h.0.crossattention.c_attn", 4, 8, empty_columns=(4, 5)),  # K is the first four
        ones("h.0.crossattention.q_attn", 4, 4),
        ones("h.0.crossattention.c_proj", 4, 4),
    ]
    assert remaining_units(matrices, config(2)) == [LayerUnits("h", 0, 2, 1, 0, 0)]


def test_heads_that_share_a_v_are_empty_together() -> None:
    matrices = [  # four heads of 2, two of V
        ones("layers.0.self_attn.q_proj", 8, 8),
        ones("layers.0.self_attn.v_proj", 4, 8, empty_rows=(0, 1)),
        ones("layers.0.self_attn.o_proj", 8, 8, empty_columns=(4, 5)),
    ]
    assert remaining_units(matrices, config(4)) == [LayerUnits("layers", 0, 4, 1, 0, 0)]
    assert remaining_units(matrices[:2], config(4)) == [LayerUnits("layers", 0, 4, 2, 0, 0)]
    assert remaining_units(matrices[1:2], config(4)) == []  # how many share it is not known


def test_gpt_neox_has_q_k_and_v_head_by_head() -> None:
    fused = ones("layers.0.attention.query_key_value", 12, 4, empty_rows=(4, 5))
    assert remaining_units([fused], config(2)) == [LayerUnits("layers", 0, 2, 1, 0, 0)]


def test_a_gated_neuron_needs_both_of_its_rows() -> None:
    gate = ones("layers.0.mlp.gate_proj", 6, 4, empty_rows=(0,))
    up = ones("layers.0.mlp.up_proj", 6, 4, empty_rows=(1,))
    down = ones("layers.0.mlp.down_proj", 4, 6, empty_columns=(2,))
    assert remaining_units([gate, up, down], config(2)) == [LayerUnits("layers", 0, 0, 0, 6, 3)]


def test_both_matrices_of_a_gated_one_may_be_fused() -> None:
    fused = ones("layers.0.mlp.Wi", 12, 4, empty_rows=(0, 7))
    down = ones("layers.0.mlp.Wo", 4, 6, empty_columns=(2,))
    assert remaining_units([fused, down], config(2)) == [LayerUnits("layers", 0, 0, 0, 6, 3)]
    assert remaining_units([fused], config(2)) == []  # gated or not: the other side tells


@pytest.mark.parametrize("heads", [0, -1, 4])
def test_heads_that_do_not_divide_are_left_out(heads: int) -> None:
    assert remaining_units([ones("layer.0.attention.self.value", 6, 6)], config(heads)) == []


def test_matrices_that_no_name_places_are_left_out() -> None:
    assert (
        remaining_units([ones("odd", 3, 3), ones("value", 4, 4), ones("layer.0.other", 4, 4)], config(2))
        == []
    )
    assert remaining_units([], config(12)) == []


def test_a_head_size_decides_over_the_number_of_heads() -> None:
    # Two heads of 4 remain of three: without the size, 8 lines would not make three heads.
    output = ones("layer.0.attention.o_proj", 12, 8, empty_columns=(0, 1, 2, 3))
    assert remaining_units([output], config(3)) == []
    assert remaining_units([output], config(3) | {"head_dim": 4}) == [LayerUnits("layer", 0, 2, 1, 0, 0)]
    assert remaining_units([output], config(3) | {"head_dim": 3}) == []


@pytest.mark.parametrize("name", ["q_proj", "k_proj"])
def test_an_attention_whose_matrices_do_not_fit_is_left_out(name: str) -> None:
    matrices = [
        ones(f"layers.0.self_attn.{name}", 6, 8),
        ones("layers.0.self_attn.v_proj", 8, 8),
        ones("layers.0.self_attn.o_proj", 8, 8),
    ]
    assert remaining_units(matrices, config(4)) == []


@settings(max_examples=60, deadline=None)
@given(
    heads=st.integers(1, 4),
    neurons=st.integers(1, 6),
    density=st.sampled_from([0.05, 0.2, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_engine_removes_what_is_counted_as_dead(
    heads: int, neurons: int, density: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    hidden, size = 3 * heads, 3
    shapes = {"query": (hidden, hidden), "key": (hidden, hidden), "value": (hidden, hidden)}
    shapes |= {
        "attention_output": (hidden, hidden),
        "ffn_in": (neurons, hidden),
        "ffn_out": (hidden, neurons),
    }
    weights = {name: (random.random(shape) < density).astype(np.float32) for name, shape in shapes.items()}
    norm = Norm(np.ones(hidden, np.float32), np.zeros(hidden, np.float32))
    parts = {name: Linear(Matrix.from_dense(weight), None) for name, weight in weights.items()}
    small = shrunk(Layer(**parts, attention_norm=norm, output_norm=norm), size, "gelu")
    names = dict(zip(shapes, ARCHITECTURES["bert"].matrices.values(), strict=True))
    matrices = [counts(f"layer.0.{names[name]}", weight.tolist()) for name, weight in weights.items()]
    assert remaining_units(matrices, config(heads)) == [
        LayerUnits(
            "layer", 0, heads, small.value.weight.shape[0] // size, neurons, small.ffn_in.weight.shape[0]
        )
    ]
