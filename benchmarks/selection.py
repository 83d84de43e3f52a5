"""Exact global Top_v over the 84.9M scores of a BERT-base encoder, against torch.kthvalue.

    python benchmarks/selection.py

Interleaved rounds on all cores, after one round to warm up; medians of ratios. `threshold` finds
the k-th highest score, as kthvalue does; `masks` also writes the 72 masks. Extra memory is the
growth of the process's peak over one call, in a process of its own each (Linux). Exactness is
checked.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fineprune.pruning.selection import find_threshold, keep_count, top_v

SHAPES = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]


def scores(layers: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(layers) for shape in SHAPES]


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def extra_memory(what: str, layers: int) -> float:
    """MB by which the peak of a fresh process grows during the call."""
    command = [sys.executable, __file__, "--peak", what, "--layers", str(layers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def high_water() -> int:
    """Peak resident kB of this process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def peak(what: str, layers: int) -> None:
    tensors = scores(layers)
    masks = [torch.empty(t.shape, dtype=torch.bool).fill_(True) for t in tensors]
    flat = torch.cat([t.view(-1) for t in tensors]) if what == "kthvalue" else torch.empty(0)
    small = [t[:64] for t in tensors]  # code paths and their buffers, once
    top_v(small, 0.1, [m[:64] for m in masks])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = high_water()
    if what == "kthvalue":
        torch.kthvalue(flat, len(flat) - keep_count(0.1, len(flat)) + 1)
    else:
        top_v(tensors, 0.1, masks)
    print((high_water() - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=("kthvalue", "top_v"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        return peak(arguments.peak, arguments.layers)
    tensors = scores(arguments.layers)
    flat = torch.cat([t.view(-1) for t in tensors])
    masks = [torch.empty(t.shape, dtype=torch.bool) for t in tensors]
    print(f"{len(flat):,} scores, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    print("| density | kthvalue / threshold | kthvalue / threshold and masks | spread of rounds |")
    print("|---|---|---|---|")
    for density in (0.03, 0.1, 0.5):
        keep = keep_count(density, len(flat))
        rank = len(flat) - keep + 1
        calls = (
            lambda rank=rank: torch.kthvalue(flat, rank),
            lambda keep=keep: find_threshold(tensors, keep),
            lambda density=density: top_v(tensors, density, masks),
        )
        rounds = [[timed(call) for call in calls] for _ in range(arguments.rounds + 1)][1:]
        assert find_threshold(tensors, keep).value == float(torch.kthvalue(flat, rank).values)
        assert sum(int(mask.sum()) for mask in masks) == keep
        ratios = [entry[0] / entry[1] for entry in rounds]
        whole = [entry[0] / entry[2] for entry in rounds]
        print(
            f"| {density:.0%} | {statistics.median(ratios):.1f} | {statistics.median(whole):.1f} "
            f"| {min(ratios):.1f} - {max(ratios):.1f} |"
        )
    for what in ("top_v", "kthvalue"):
        print(f"extra memory of {what}: {extra_memory(what, arguments.layers):.0f} MB")


if __name__ == "__main__":
    main()
