"""Runs a study of stubs, of which one dies, or which a signal ends; test_runner.py looks at what comes of it.

In a process of its own, so that a signal or an end that goes astray fails one test, and says so.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from joblib.externals.loky import get_reusable_executor

from fineprune.study import runner
from fineprune.study.grid import Study

SECONDS = 200
"""How long a study may take to begin two runs."""


def stub(run, out, place, threads):
    """In the place of `work`: writes what it was given; dies or fails where the task says so."""
    begun = out / ".study" / f"{run.name}.begun"
    begun.touch()
    if run.cell.task in ("dies", "ends"):
        for _ in range(20 * SECONDS):  # until another is under way
            if (out / "waited").exists():
                break
            time.sleep(0.05)
        if run.cell.task == "ends":
            raise SystemExit(75)  # as at SIGTERM
        os._exit(9)
    if run.cell.task == "waits" and not (out / "waited").exists():
        (out / "waited").touch()
        time.sleep(60)
    begun.unlink()
    (out / run.name).mkdir(exist_ok=True)
    (out / run.name / "given").write_text(f"{os.getpid()} {place} {threads}")
    return run.name, "done"


def saving_stub(run, out, place, threads):
    """In the place of `work`: a run that takes a minute, and a while to save when it is told to end."""
    try:
        (out / f"{run.name}.begun").touch()
        time.sleep(60)
    except (KeyboardInterrupt, SystemExit):
        time.sleep(0.5 + 0.5 * run.cell.seed)
        (out / f"{run.name}.saved").touch()
        raise
    return run.name, "done"


def runs(recipe: str, out: Path, tasks: list[str], seeds: list[int]):
    """Runs of the tiny recipe."""
    axes = {"method": "movement", "density": 0.25, "seed": seeds}
    return Study.from_dict({"name": "x", "recipes": {task: [recipe] for task in tasks}, "axes": axes}).runs(
        out
    )


def dying(recipe: str, out: Path, how: str) -> dict:
    """A study of four runs, one of which dies."""
    runner.work = stub
    said: list[str] = []
    failures = runner.run_study(
        runs(recipe, out, [how, "waits", "c", "d"], [0]), out, jobs=2, say=said.append
    )
    return {"failures": failures, "said": said, "process": os.getpid(), "place": os.getcwd()}


def told(recipe: str, out: Path, name: str) -> dict:
    """A study of three runs that gets a signal when two have begun."""
    runner.work = saving_stub
    number = signal.Signals[name]
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def tell():
        end = time.monotonic() + SECONDS
        while len(list(out.glob("*.begun"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        if time.monotonic() < end:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=tell)
    thread.start()
    ending = "it came to its end"
    try:
        runner.run_study(runs(recipe, out, ["a"], [0, 1, 2]), out, jobs=2)
    except (KeyboardInterrupt, SystemExit) as error:
        ending = repr(error)
    thread.join()
    return {"ending": ending}


if __name__ == "__main__":
    case, recipe, out, argument, results = sys.argv[1:]
    found = {"dying": dying, "told": told}[case](recipe, Path(out), argument)
    Path(results).write_text(json.dumps(found))
    get_reusable_executor().shutdown(kill_workers=True)  # idle ones would be waited for
