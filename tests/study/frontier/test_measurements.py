"""Measurements in the folder of a run: kept once, read back, damage ignored."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from fineprune.study.frontier.measurements import (
    RECORD,
    Measurement,
    Place,
    content_of,
    keep,
    read_measurements,
    texts_of,
)

PLACE = Place("A CPU", 1, "texts", "reference")
ONE = Measurement("torch", PLACE, "content", {"torch": "2"}, ratio=2.0, reference_ms=3.0, score=0.5)


def test_a_newer_one_replaces_the_same_and_others_stay(tmp_path):
    keep(tmp_path, [ONE])
    other = replace(ONE, place=PLACE._replace(machine="Another"))
    newer = replace(ONE, ratio=4.0)
    keep(tmp_path, [other, newer])
    assert read_measurements(tmp_path) == [newer, other]


def test_two_processes_lose_nothing(tmp_path):
    """Each adds what it measured while the other does, too."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_keep_twenty, [tmp_path] * 2, "ab"))
    assert len(read_measurements(tmp_path)) == 40


def _keep_twenty(folder, name):
    for number in range(20):
        keep(folder, [replace(ONE, runtime=f"{name}{number}")])


@pytest.mark.parametrize(
    "entry",
    [
        {},
        1,
        {"runtime": "torch"},
        {"ratio": "fast"},
        {"ratio": 0.0},
        {"place": {"machine": "x"}},
        {"place": {**PLACE._asdict(), "threads": [1]}},
        {"versions": {"torch": ["2"]}},
        {"failed": 1},
    ],
)
def test_damage_is_left_out(tmp_path, entry):
    keep(tmp_path, [ONE])
    (good,) = json.loads((tmp_path / RECORD).read_text())
    whole = good | entry if isinstance(entry, dict) and len(entry) == 1 and "runtime" not in entry else entry
    (tmp_path / RECORD).write_text(json.dumps([whole, good]))
    assert read_measurements(tmp_path) == [ONE]


def test_no_file_and_no_list_are_nothing(tmp_path):
    assert read_measurements(tmp_path) == []
    (tmp_path / RECORD).write_text("{}")
    assert read_measurements(tmp_path) == []


def test_content_changes_with_weights_and_length(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a" * 100)
    first = content_of(tmp_path, 64)
    assert content_of(tmp_path, 64) == first != content_of(tmp_path, 128)
    large = bytearray(160 << 16)
    (tmp_path / "model.safetensors").write_bytes(large)
    first = content_of(tmp_path, 64)
    large[(2 << 16) + 5] = 1  # one byte of many
    (tmp_path / "model.safetensors").write_bytes(large)
    assert content_of(tmp_path, 64) != first


def test_content_changes_with_the_config_and_the_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    first = content_of(tmp_path, 64)
    (tmp_path / "tokenizer.json").write_text("{}")
    second = content_of(tmp_path, 64)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert len({first, second, content_of(tmp_path, 64)}) == 3


def test_texts_are_those_of_the_file_wherever_it_is(tmp_path):
    for name, text in (("a.tsv", "x"), ("b.tsv", "x"), ("c.tsv", "y")):
        (tmp_path / name).write_text(text)
    a, b, c = (texts_of({"validation": str(tmp_path / f"{name}.tsv")}, 10, 5) for name in "abc")
    assert a == b != c
    assert a != texts_of({"validation": str(tmp_path / "a.tsv")}, 11, 5)
