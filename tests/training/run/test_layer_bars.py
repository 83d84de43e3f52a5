"""Layers as bars in a terminal, and what is left of their heads and neurons."""

from fineprune.training.run.inspection import LayerDensity
from fineprune.training.run.layer_bars import bars


def layer(number, kept, stack="encoder.layer", heads=(None, None), neurons=(None, None), living=None):
    return LayerDensity(stack, number, kept, 1000, *heads, *neurons, living)


def test_bars_are_scaled_to_the_densest():
    layers = (layer(0, 200), layer(1, 100), layer(2, 103), layer(3, 1), layer(4, 0))
    assert bars(layers) == [
        "layer                                    density",
        "    0  ████████████████████████████████   20.00%",
        "    1  ████████████████                   10.00%",
        "    2  ████████████████▌                  10.30%",  # 103 / 200 of 32 is 16.48: 16 and 4 eighths
        f"    3  ▏{' ' * 31}    0.10%",  # 0.16: 1 eighth
        f"    4  {' ' * 32}    0.00%",
    ]
    assert [line.strip() for line in bars(layers, blocks=False)[1:]] == [
        f"0  {'#' * 32}   20.00%",
        f"1  {'#' * 16}{' ' * 16}   10.00%",
        f"2  {'#' * 16}{' ' * 16}   10.30%",
        f"3  #{' ' * 31}    0.10%",
        f"4  {' ' * 32}    0.00%",
    ]


def test_heads_and_neurons_stand_beside():
    layers = (
        layer(9, 200, heads=(12, 11), neurons=(3072, 2900)),
        layer(10, 200, neurons=(3072, 0)),
        layer(None, 100, stack=""),
    )
    lines = bars(layers)
    assert lines[0].split("  ")[-2:] == ["heads left", "FFN neurons left"]
    assert lines[1].endswith("20.00%    11 of 12    2,900 of 3,072")
    assert lines[2].endswith("20.00%           -        0 of 3,072")
    assert lines[3].endswith("10.00%           -                 -")
    assert "other" in lines[3]
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in lines}) == 1


def test_stacks_are_named_where_there_are_several():
    lines = bars((layer(0, 100, "encoder.block"), layer(0, 100, "decoder.block")))
    assert [line.split("  ")[0] for line in lines[1:]] == ["encoder.block 0", "decoder.block 0"]
    full = {"heads": (16, 16), "neurons": (3072, 3072)}
    lines = bars((layer(11, 100, "model.encoder.layers", **full), layer(11, 50, "model.decoder.layers")))
    assert {len(line) for line in lines} == {80}  # the bars are shorter
    assert lines[1].count("█") == 2 * lines[2].count("█") == 16


def test_nothing_is_left():
    assert bars((layer(0, 0),))[1].split() == ["0", "0.00%"]


def test_a_matrix_without_a_number_is_other():
    assert [line.split()[0] for line in bars((layer(None, 100, stack=""),))] == ["layer", "other"]


def test_a_cell_for_each_head_and_a_bar_of_neurons():
    shrunk = layer(0, 200, heads=(6, 2), neurons=(1000, 250), living=(0, 3))
    whole = layer(1, 100, heads=(6, 6), neurons=(1000, 1000), living=tuple(range(6)))
    assert bars((shrunk, whole), pictures=True) == [
        "layer                    density  heads left          FFN neurons left",
        "    0  ████████████████   20.00%      2 of 6  █..█..      250 of 1,000  ██",
        "    1  ████████           10.00%      6 of 6  ██████    1,000 of 1,000  ████████",
    ]
    assert bars((shrunk,), blocks=False, pictures=True)[1].split()[-2:] == ["1,000", "##"]


def test_pictures_need_room():
    long = layer(0, 200, "model.decoder.layers", heads=(48, 1), neurons=(1000, 250), living=(0,))
    assert bars((long,), pictures=True)[1].endswith("1 of 48      250 of 1,000")
