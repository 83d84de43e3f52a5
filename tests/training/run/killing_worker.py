"""Starts a run again and again and kills it at random moments; test_killed.py looks at what comes of it.

A process a run, forked from this one, which has imported everything: a start takes a moment, not ten seconds.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from fineprune.training.run.recipe import Recipe
from fineprune.training.run.train import run_recipe


def start(recipe: Recipe, out: Path) -> int:
    """The run in a process of its own, begun or continued."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            run_recipe(recipe, out, resume=True, progress=False)
            code = 0
        finally:
            os._exit(code)
    return process


def wait(process: int, seconds: float | None) -> int | None:
    """Its exit code, -9 if it had to be killed after so many seconds."""
    if seconds is not None:
        time.sleep(seconds)
        os.kill(
            process, signal.SIGKILL
        )  # which a process that has ended, and was not waited for, does not mind
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, folder, times = Recipe.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    began = time.perf_counter()
    assert wait(start(recipe, folder / "whole"), None) == 0
    length = time.perf_counter() - began
    rng = random.Random(times)
    for number in range(times):
        out, kills = folder / str(number), 0
        while wait(start(recipe, out), rng.uniform(0, length) if kills < 3 else None) != 0:
            if kills == 3:
                sys.exit("a run that was left alone failed")
            kills += 1
        print(json.dumps({"run": number, "kills": kills, "length": length}), flush=True)
