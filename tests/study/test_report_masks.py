"""The map of a model, as the page has it."""

import numpy as np
from study.reports import make_matrix, opened

from fineprune.study.report.masks import map_of, png, strip


def test_strips_are_densities_by_bin():
    # Rows of 10 weights in two bins: 5 of 20, and 10 of 20.
    assert strip(np.array([5, 0, 2, 8], np.int32), 2, 10) == ("M0 0V50H1V100H2V0Z", 0.5)
    assert strip(np.zeros(3, np.int32), 3, 10) == ("M0 0V0H1V0H2V0H3V0Z", 0.0)


def test_a_picture_keeps_single_weights_visible():
    picture = np.array([[0, 1], [100, 255]], np.uint8)
    opacity = np.array(opened(png(picture, 200)))[..., 3]
    assert opacity.tolist() == [[0, 17], [136, 255]]  # of 15 steps: 0, 1, 8 and 15


def test_a_map_has_a_table_for_each_stack_and_a_column_for_other_kinds():
    mask = np.eye(4, dtype=bool)
    names = (
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.1.layer.0.SelfAttention.q",
        "decoder.block.1.layer.1.EncDecAttention.q",
        "decoder.block.1.layer.2.odd",
        "decoder.block.0.layer.0.SelfAttention.v",
        "pooler",
    )
    found = map_of([make_matrix(name, mask) for name in names])
    shown = [
        (
            stack.title,
            stack.columns,
            [(line.label, [len(cells) for cells in line.cells]) for line in stack.lines],
        )
        for stack in found.stacks
    ]
    assert shown == [
        ("encoder.block", ["Q"], [("0", [1])]),
        ("decoder.block", ["Q", "V", "odd"], [("0", [0, 1, 0]), ("1", [2, 0, 1])]),
        ("", ["other"], [("pooler", [1])]),
    ]
    assert found.top == 0.25
    assert {
        cell.shade for stack in found.stacks for line in stack.lines for cells in line.cells for cell in cells
    } == {1}
