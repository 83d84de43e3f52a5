"""From which density on dense weights are as fast as sparse ones: benchmarks/engine.py --break-even."""

import argparse
import math
from typing import Any

import encoders
import torch

from fineprune._files import write_json
from fineprune._messages import one_line
from fineprune.inference.bench.timing import compare, interleave, machine

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ENGINES = ("engine float32", "engine bfloat16", "engine int8")
DENSE = ("torch", "OpenVINO", "OpenVINO bfloat16", "OpenVINO int8")


def run(arguments: argparse.Namespace) -> None:
    """Each density in a file: the first shape, case and number of threads that are asked, all dense peers.

    A dense peer takes the same time for any weights: it is made once, from weights of which none is zero.
    """
    shape, threads = arguments.shape[0], arguments.threads[0]
    case = arguments.case[0] if len(arguments.case) == 1 else "1x128"
    batch, length = map(int, case.split("x"))
    torch.set_num_threads(threads)
    x = encoders.tokens(shape, batch, length)
    missing, dense = {}, {}
    whole = encoders.Peers(encoders.make(shape, 1.0), threads)
    for name in DENSE:
        try:
            dense[name] = whole.run(name, x)
            encoders.answer(dense[name])
        except Exception as error:  # by peer
            missing[name] = one_line(error)
            dense.pop(name, None)
    for density in arguments.density:
        path = arguments.out / f"break-even-{shape}-{density:g}-{case}-{threads}.json"
        if path.is_file() and not arguments.again:
            continue
        peers = encoders.Peers(encoders.make(shape, density), threads)
        runs = dict(dense)
        for name in ENGINES:
            try:
                runs[name] = peers.run(name, x)
            except Exception as error:  # a dtype that this processor lacks
                missing[name] = one_line(error)
        timings = compare(interleave(runs, arguments.rounds), "torch")
        rows = {name: timing._asdict() for name, timing in timings.items()}
        about = {
            "shape": shape,
            "density": density,
            "case": case,
            "threads": threads,
            "rounds": arguments.rounds,
        }
        write_json(path, about | {"peers": rows, "missing": missing, "machine": machine(threads)})
        said = "  ".join(f"{name} {timing.ratio:.2f}" for name, timing in timings.items())
        print(f"{density:.0%}: {said}", flush=True)


def crossing(points: list[tuple[float, float]]) -> float | None:
    """At which density sparse / dense speed, given as (density, ratio), falls through 1.

    Between two of them by a straight line through the logarithms of both. 1: never in what was measured;
    None: at no density was sparse faster.
    """
    points = sorted(points)
    if points[-1][1] >= 1:  # noise below 1 in between is no crossing
        return 1.0
    for (low, faster), (high, slower) in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
        if faster >= 1 > slower:
            share = math.log(faster) / (math.log(faster) - math.log(slower))
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return None


def crossings(cases: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """For each engine and each dense peer, the break-even; `cases` are the files of one shape and case."""
    found: dict[str, dict[str, float | None]] = {}
    for engine in ENGINES:
        for dense in DENSE:
            points = [
                (case["density"], case["peers"][engine]["ratio"] / case["peers"][dense]["ratio"])
                for case in cases
                if {engine, dense} <= set(case["peers"])
            ]
            if points:
                found.setdefault(engine, {})[dense] = crossing(points)
    return found
