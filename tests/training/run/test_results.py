"""Results, sizes and speeds are read from the files of a run in one way."""

import json

import pytest

from fineprune import FinepruneError
from fineprune.training.run.results import (
    fastest,
    packed_of,
    parameters_left,
    read_results,
    size_of,
    timings_of,
    weight_bytes,
)

NUMBERS = ("score", "density", "kept", "total", "parameters", "steps", "seconds")
RESULTS = dict.fromkeys(NUMBERS, 1) | {
    "metric": "f1",
    "scores": {"f1": 1},
    "recipe": {"training": {"seed": 0}, "pruning": None},
}


@pytest.mark.parametrize(
    "more", [{}, {"warnings": ["slow"], "packed_bytes": {}, "examples": {"train": 3}}, {"warnings": None}]
)
def test_results_are_read_as_they_are(tmp_path, more):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS | more))
    assert read_results(path) == RESULTS | more


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"cannot be read, it is damaged \(.*\); delete it and run again with --resume"),
        ("[" * 100_000, "cannot be read, it is damaged"),
        (
            "[1]",
            r"not the results of a run \(a mapping is expected, got \[1\]\); delete it",
        ),
        ("{}", r"not the results of a run \(score: None\); delete it"),
        (
            json.dumps(RESULTS | {"recipe": RESULTS["recipe"] | {"earlier_densities": [[]]}}),
            r"not the results of a run \(recipe: .*\); delete it",
        ),
        *((json.dumps(RESULTS | {name: True}), rf"\({name}: True\)") for name in NUMBERS),
        (json.dumps(RESULTS | {"score": float("nan")}), r"\(score: nan\)"),
        (json.dumps(RESULTS | {"scores": {"f1": "1"}}), r"\(scores: {'f1': '1'}\)"),
        (json.dumps(RESULTS | {"recipe": {"training": {}, "model": "minilm"}}), r"\(recipe: {'training"),
    ],
)
def test_what_are_no_results_is_one_line(tmp_path, text, said):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(FinepruneError, match=rf"results\.json: .*{said}") as error:
        read_results(path)
    assert "\n" not in str(error.value)


def test_without_results_the_caller_says_why(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "results.json")
    with pytest.raises(FinepruneError, match=r"cannot be read \(File name too long\)"):
        read_results(tmp_path / ("x" * 300) / "results.json")


def bench(*rows):
    """Of peers with their milliseconds and ratios; a last True: the answer was wrong."""
    made = [
        {
            "peer": peer,
            "model": None,
            "wrong": bool(wrong),
            "timing": {"milliseconds": time, "ratio": ratio, "low": ratio, "high": ratio},
        }
        for peer, time, ratio, *wrong in rows
    ]
    machine = {"threads": 1, "processor": "CPU"}
    return {"file_bytes": 5, "batch": 1, "length": 128, "machine": machine, "rows": made}


def test_the_fastest_is_the_engines_row_with_the_lowest_time():
    given = bench(("OpenVINO", 1.0, 9), ("engine int8", 4.0, 8), ("engine float32", 3.9, 7))
    rows, why = timings_of(given, 5)
    assert (len(rows), why) == (3, None)
    assert fastest(rows).peer == "engine float32"
    assert rows[0].where == "1 × 128 tokens, 1 thread, CPU"
    assert fastest(rows[:1]) is None


@pytest.mark.parametrize(
    ("given", "file_bytes", "count", "said"),
    [
        (bench(("torch", 1.0, 1.0)), None, 1, None),  # no weights to compare with
        (bench(("torch", 1.0, 1.0)), 6, 0, "bench.json is of other weights"),
        (bench(("torch", 1.0, 1.0, True)), 5, 0, "bench.json has no right answer"),
        (bench(("torch", 10**400, 1.0)), 5, 0, "bench.json cannot be read: "),
        (bench(("torch", 1.0, float("nan"))), 5, 0, "bench.json cannot be read: a time that is not a finite"),
        (None, None, 0, "bench.json cannot be read: "),
    ],
)
def test_wrong_and_stale_rows_are_dropped(given, file_bytes, count, said):
    rows, why = timings_of(given, file_bytes)
    assert len(rows) == count
    assert why is None if said is None else why.startswith(said)


def test_sizes(tmp_path):
    packed = {"float32": 4, "int8": 1, "odd": "x"}
    assert packed_of({"packed_bytes": packed}) == {"float32": 4, "int8": 1}
    assert size_of({"packed_bytes": packed, "dense_bytes": 9}) == ({"float32": 4, "int8": 1}, 9)
    assert size_of({"packed_bytes": packed}) is None
    assert size_of(None) is None
    assert weight_bytes(tmp_path) is None
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    assert weight_bytes(tmp_path) == 5


def test_parameters_are_those_before_pruning():
    counts = {"parameters": 1000, "total": 600, "kept": 150}
    assert parameters_left(counts) == (550, 1000)
    refined = counts | {"parameters": 580, "pruned": {"parameters": 1000}}  # of the smaller model
    assert parameters_left(refined) == (550, 1000)
    assert parameters_left(counts | {"pruned": {}}) == (550, 1000)
