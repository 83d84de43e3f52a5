"""Density by layer and kind, and what is empty, by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fineprune.study.figures.layers import density_by_layer, empty
from fineprune.study.figures.style import Figure
from fineprune.study.study_folder import read_folder
from fineprune.training.run.mask_snapshot import Record

WriteRun = Callable[..., Path]
MakeRecord = Callable[..., Record]


def made(figure: Figure | str) -> Figure:
    assert isinstance(figure, Figure)
    return figure


def test_densities_are_kept_of_all_by_layer_and_by_kind(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    ends = ("0.attention.self.value", "0.attention.output.dense", "1.attention.self.value")
    record = tiny_record(names=tuple(f"encoder.layer.{end}" for end in ends))
    value, output, above = record.matrices
    emptied = replace(output, rows=output.rows * 0, columns=output.columns * 0)
    record = replace(record, matrices=(value, emptied, above))
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, record=record)
    figure = made(density_by_layer(read_folder(folder)))
    about = ("sst2-l0-0.1-s0", "l0", "global")
    assert figure.data == [
        (*about, "layer", "encoder.layer", 0, None, 8 / 32),
        (*about, "layer", "encoder.layer", 1, None, 8 / 16),
        (*about, "kind", None, None, "V", 16 / 32),
        (*about, "kind", None, None, "O", 0.0),
    ]
    assert "flat" not in figure.caption


def test_local_selection_is_said_to_be_flat(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, record=tiny_record())
    runs = read_folder(write_run("sst2-magnitude-0.1-s0", "magnitude", 0.1, 0.5, record=tiny_record()).parent)
    assert (
        "Under local selection (magnitude) every matrix keeps the same share"
        in made(density_by_layer(runs)).caption
    )


def test_stacks_are_told_apart(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    names = tuple(f"{stack}.block.{layer}.q" for stack in ("encoder", "decoder") for layer in (0, 1))
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, record=tiny_record(names=names))
    axis = made(density_by_layer(read_folder(folder))).draw().axes[0]
    assert [text.get_text() for text in axis.texts] == ["encoder", "decoder"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0", "1", "0", "1"]


def test_names_without_a_layer_leave_the_kinds(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, record=tiny_record(names=("odd",)))
    figure = made(density_by_layer(read_folder(folder)))
    assert [row[3:] for row in figure.data] == [("kind", None, None, "other", 0.5)]
    assert len(figure.draw().axes) == 1
    assert empty(read_folder(folder)) == (
        "neither heads nor neurons can be told from the names and shapes of the matrices"
    )


def test_empty_heads_are_counted(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    config = {"n_heads": 2}
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, record=tiny_record(), config=config)
    figure = made(empty(read_folder(folder)))
    # Of V the first two rows, one head, are empty; the columns of O all keep some.
    assert figure.data == [("sst2-l0-0.1-s0", "l0", "encoder.layer", 0, 2, 1, 0, 0)]
    assert "Neurons cannot be told" in figure.caption
    (axis,) = figure.draw().axes
    assert list(axis.get_lines()[0].get_ydata()) == [50.0]


def test_without_a_number_of_heads_neurons_are_left(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    names = ("layer.0.attention.self.value", "layer.0.intermediate.dense")
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, record=tiny_record(names=names))
    figure = made(empty(read_folder(folder)))
    assert figure.data == [("sst2-l0-0.1-s0", "l0", "layer", 0, 0, 0, 4, 2)]
    assert "Heads cannot be told" in figure.caption


def test_one_number_is_a_sentence(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    config = {"n_heads": 1}
    names = tuple(f"encoder.layer.{layer}.attention.output.dense" for layer in (0, 1))
    record = tiny_record(names=names)
    runs = read_folder(
        write_run("sst2-magnitude-0.1-s0", "magnitude", 0.1, 0.5, record=record, config=config).parent
    )
    where, none = made(density_by_layer(runs)), made(empty(runs))
    assert where.sentence.startswith("Every matrix keeps 50 % of its weights, since the selection is local.")
    assert none.sentence.startswith("No head is empty: each keeps a weight.")


def test_differences_are_drawn(write_run: WriteRun, tiny_record: MakeRecord) -> None:
    folder = write_run("sst2-l0-0.1-s0", "l0", 0.1, 0.5, record=tiny_record(), config={"n_heads": 2})
    runs = read_folder(folder)
    assert (made(density_by_layer(runs)).sentence, made(empty(runs)).sentence) == ("", "")
