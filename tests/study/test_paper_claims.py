"""Each claim of the paper, held and not held, on results written here."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fineprune.study.paper_claims import as_lines, claims
from fineprune.study.rows import collect
from fineprune.training.run.mask_snapshot import MatrixSnapshot

HIGH, LOW, BEST, LIFT, KEEP, CLOSE, AHEAD, LAYERS, EVENLY, SWAPS = range(10)


@pytest.fixture
def judge(tmp_path, write_results):
    """`judge(names and scores)`: the claims on runs of these names."""

    def make(**scores: float):
        for key, score in scores.items():
            task, method, density, *more = key.split("__")
            name = "-".join([task, method, *([density] if method != "dense" else []), *more, "s0"])
            scope = "global" if "global" in more else None
            share = None if method == "dense" else float(density)
            write_results(name, method, share, {"accuracy": score}, scope=scope)
        return claims(collect(tmp_path / "out"))

    return make


def test_nothing_measured_is_not_tested(judge):
    found = judge()
    assert len(found) == 10
    assert {claim.verdict for claim in found} == {"not tested at this scale"}
    assert all(not claim.numbers for claim in found[:SWAPS])


def test_what_learned_nothing_never_wins(tmp_path, write_results):
    write_results("a-movement-0.1-s0", "movement", 0.1, {"accuracy": 0.6})
    path = write_results("a-magnitude-0.1-s0", "magnitude", 0.1, {"accuracy": 0.9}) / "results.json"
    assert claims(collect(tmp_path / "out"))[LOW].verdict == "not held"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"constant": True}))
    found = claims(collect(tmp_path / "out"))[LOW]
    assert found.verdict == "held"
    assert found.numbers[1].endswith("magnitude 90.0 (1 seed), learned nothing")


def test_who_wins(judge):
    found = judge(
        **{
            "a__magnitude__0.8": 0.9,
            "a__movement__0.8": 0.8,
            "a__magnitude__0.1": 0.5,
            "a__l0__0.1": 0.4,
            "a__movement__0.1": 0.6,
            "a__magnitude__0.03": 0.3,
            "a__soft_movement__0.03": 0.2,
            "b__soft_movement__0.03": 0.3,  # alone
        }
    )
    assert found[HIGH].verdict == "held"
    assert found[HIGH].numbers == (
        "1 of 1 cases",
        "yes: a at 80 %: magnitude 90.0 (1 seed), movement 80.0 (1 seed)",
    )
    assert found[LOW].verdict == "not held"
    assert found[LOW].numbers == (
        "1 of 2 cases",
        "yes: a at 10 %: movement 60.0 (1 seed), magnitude 50.0 (1 seed), l0 40.0 (1 seed)",
        "no: a at 3 %: magnitude 30.0 (1 seed), soft_movement 20.0 (1 seed)",
    )
    assert (found[BEST].verdict, len(found[BEST].numbers)) == ("not held", 2)
    assert found[LIFT].verdict == "not tested at this scale"


def test_a_tie_is_no_win(judge):
    found = judge(**{"a__magnitude__0.03": 0.3, "a__soft_movement__0.03": 0.3})
    assert found[LOW].verdict == found[BEST].verdict == "not held"


def test_distillation(judge, write_results):
    found = judge(
        **{
            "a__l0__0.1": 0.4,
            "a__l0__0.1__distilled": 0.5,
            "a__movement__0.1": 0.6,
            "b__l0__0.1__distilled": 0.1,
        }
    )
    assert found[LIFT].verdict == "held"
    assert found[LIFT].numbers[1:] == ("yes: a at 10 %: l0 40.0 (1 seed), with a teacher 50.0 (1 seed)",)
    assert judge(**{"a__movement__0.1__distilled": 0.6})[LIFT].numbers[0] == "1 of 2 cases"


def test_only_the_seeds_that_both_have_are_set_against_each_other(judge, write_results):
    judge(**{"a__l0__0.1": 0.4, "a__l0__0.1__distilled": 0.5})
    write_results("a-l0-0.1-s1", "l0", 0.1, {"accuracy": 0.9})
    write_results("a-movement-0.1-s0", "movement", 0.1, {"accuracy": 0.4})
    write_results("a-movement-0.1-s1", "movement", 0.1, {"accuracy": 0.9})
    write_results("a-movement-0.1-global-s0", "movement", 0.1, {"accuracy": 0.4}, scope="global")
    write_results("a-l0-0.3-distilled-s0", "l0", 0.3, {"accuracy": 0.5})
    write_results("a-l0-0.3-s1", "l0", 0.3, {"accuracy": 0.4})  # no seed in common
    found = judge()
    assert found[LIFT].numbers == (
        "1 of 1 cases",
        "yes: a at 10 %: l0 40.0 (1 seed), with a teacher 50.0 (1 seed)",
    )
    assert found[CLOSE].numbers[1].endswith("movement, global 40.0 (1 seed), local 40.0 (1 seed), gap +0.0")


def test_95_percent_at_5_percent(judge):
    found = judge(**{"mnli__dense__1": 0.8, "mnli__soft_movement__0.05__distilled": 0.76})
    assert found[KEEP].verdict == "held"
    assert found[KEEP].numbers[1].endswith("soft_movement 76.0 (1 seed), 95.0% of dense")
    worse = judge(**{"squad__dense__1": 0.8, "squad__soft_movement__0.05__distilled": 0.75})
    assert worse[KEEP].verdict == "not held"


def test_scopes(judge):
    found = judge(
        **{
            "a__movement__0.1": 0.6,
            "a__movement__0.1__global": 0.609,
            "a__movement__0.03": 0.5,
            "a__movement__0.03__global": 0.523,
            "a__l0__0.03": 0.9,
        }
    )
    assert (found[CLOSE].verdict, found[AHEAD].verdict) == ("held", "held")
    assert found[CLOSE].numbers[1] == (
        "yes: a at 10 %: movement, global 60.9 (1 seed), local 60.0 (1 seed), gap +0.9"
    )
    worse = judge(**{"b__magnitude__0.1": 0.6, "b__magnitude__0.1__global": 0.58})
    assert (worse[CLOSE].verdict, worse[AHEAD].verdict) == ("not held", "held")


def test_low_layers(judge, write_results, tiny_record, tmp_path):
    def layered(name, method, kept, **more):
        """A run whose layers keep so many of the four weights in each row of their only matrix."""
        folder = write_results(name, method, 0.1, {"accuracy": 0.5}, **more)
        masks = [np.arange(4) < np.array(rows)[:, None] for rows in kept]
        matrices = tuple(
            MatrixSnapshot(
                f"layer.{i}.attention.self.query", (4, 4), mask.sum(1), mask.sum(0), np.uint8(255 * mask)
            )
            for i, mask in enumerate(masks)
        )
        replace(tiny_record(), matrices=matrices).save(folder)

    layered("a-l0-0.1-s0", "l0", [[4, 4, 0, 0], [4, 0, 0, 0], [2, 0, 0, 0]])
    layered("a-l0-0.1-s1", "l0", [[4, 4, 4, 0], [4, 0, 0, 0], [0, 0, 0, 0]])
    layered("a-movement-0.1-s0", "movement", [[4, 4, 0, 0], [4, 0, 0, 0]])  # local
    layered("a-magnitude-0.1-global-s0", "magnitude", [[4, 4, 0, 0], [4, 0, 0, 0]], scope="global")
    claim = claims(collect(tmp_path / "out"))[LAYERS]
    told = "yes: a at 10 %: l0, from the first layer 62.5, 25.0, 6.2 %"
    assert claim == ("global first-order methods keep more in low layers", "held", ("1 of 1 cases", told))
    layered("a-movement-0.1-global-s0", "movement", [[4, 0, 0, 0], [4, 0, 0, 0]], scope="global")
    found = claims(collect(tmp_path / "out"))
    assert found[LAYERS].verdict == "not held"
    assert found[EVENLY][1:] == (
        "not held",
        ("0 of 1 cases", "no: a at 10 %: magnitude, global, from the first layer 50.0, 25.0 %"),
    )
    layered("b-magnitude-0.1-global-s0", "magnitude", [[4, 2, 0, 0], [4, 0, 0, 0]], scope="global")
    assert claims(collect(tmp_path / "out"))[EVENLY].numbers[::2] == (  # 6 of 16 against 4: 1.5 times
        "1 of 2 cases",
        "yes: b at 10 %: magnitude, global, from the first layer 37.5, 25.0 %",
    )


def test_what_is_too_close_to_tell_decides_nothing(write_results, tmp_path):
    """Of 100 examples the standard error at 50 % is 5 points, that of a difference 7.07."""

    def told(other):
        write_results("a-magnitude-0.1-s0", "magnitude", 0.1, {"accuracy": 0.5}, validation=100)
        write_results("a-movement-0.1-s0", "movement", 0.1, {"accuracy": other}, validation=100)
        return claims(collect(tmp_path / "out"))[LOW]

    close = told(0.57)
    assert close.verdict == "not tested at this scale"
    assert close.numbers[0] == "1 too close to tell"
    assert close.numbers[1].startswith("close: a at 10 %: movement 57.0")
    assert told(0.43).verdict == "not tested at this scale"
    assert told(0.58).verdict == "held"
    assert told(0.42).verdict == "not held"
    write_results("b-magnitude-0.1-s0", "magnitude", 0.1, {"accuracy": 0.5}, validation=100)
    write_results("b-movement-0.1-s0", "movement", 0.1, {"accuracy": 0.5}, validation=100)
    assert told(0.58)[1:3] == (
        "held",
        (
            "1 of 1 cases; 1 too close to tell",
            "yes: a at 10 %: movement 58.0 (1 seed), magnitude 50.0 (1 seed)",
            "close: b at 10 %: magnitude 50.0 (1 seed), movement 50.0 (1 seed)",
        ),
    )


def test_lines(judge):
    text = as_lines(judge(**{"a__magnitude__0.8": 0.9, "a__movement__0.8": 0.8}))
    assert text.startswith(
        "- above 70 % density magnitude wins: **held**\n"
        "  - 1 of 1 cases\n"
        "  - yes: a at 80 %: magnitude 90.0 (1 seed), movement 80.0 (1 seed)\n"
        "- below 15 % density first-order methods win: **not tested at this scale**\n"
    )


def test_scopes_that_are_too_close_to_tell(write_results, tmp_path):
    """Of 1,000 examples the standard error of a difference at 50 % is 2.24 points."""

    def told(density, gap):
        name, share = f"a-movement-{density:g}", {"accuracy": 0.5}
        write_results(f"{name}-s0", "movement", density, share, validation=1000)
        share = {"accuracy": 0.5 + gap / 100}
        write_results(f"{name}-global-s0", "movement", density, share, scope="global", validation=1000)
        found = claims(collect(tmp_path / "out"))
        return found[CLOSE if density > 0.03 else AHEAD].verdict

    assert told(0.1, 0.0) == told(0.1, 3.2) == "not tested at this scale"  # 3.2 - 2.24 is within one point
    assert told(0.1, 3.3) == told(0.1, -3.3) == "not held"
    assert told(0.03, 3.2) == told(0.03, -1.2) == "not tested at this scale"
    assert told(0.03, 3.3) == "held"
    assert told(0.03, -1.3) == "not held"
