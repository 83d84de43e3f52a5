"""Time calls on a shared machine: interleaved rounds, medians, ratios within a round."""

import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Name = TypeVar("Name", bound=Hashable)

# Seconds. A call of less than _SHORT is prepared for its turn: a pause, in which the threads of other
# runtimes, which spin for a while after their work, fall asleep; then calls for _WINDOW; as many are timed.
_SHORT = 0.1
_PAUSE = 0.02
_WINDOW = 0.01
_PACKAGES = (
    "fineprune",
    "fineprune-runtime",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "nncf",
    "ctranslate2",
    "llama-cpp-python",
    "deepsparse",
)

_SAY_EVERY = 10.0  # seconds
_FEWEST = 3  # rounds of a measurement that was stopped


class Timing(NamedTuple):
    """One call's time, and its speed relative to the base."""

    milliseconds: float
    """The median over the rounds."""
    ratio: float
    """The median over the rounds of the base's time / this call's time in the same round."""
    low: float
    high: float
    """The ratio's quartiles."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C after three rounds or more; `times` is what `interleave` returns, of the complete rounds."""

    def __init__(self, times: dict[Any, list[float]]) -> None:
        super().__init__()
        self.times = times


def silent(line: str) -> None:
    """Say nothing about the progress of a measurement."""


def interleave(
    calls: Mapping[Name, Callable[[], Any]], rounds: int, say: Callable[[str], None] = silent
) -> dict[Name, list[float]]:
    """Return seconds of each call in each round; each round runs all calls, so noise affects all alike.

    Args:
        calls: what is timed, by name.
        rounds: the number of rounds.
        say: called with a line now and then, every ten seconds at most.

    Raises:
        Stopped: Ctrl-C, after three rounds or more.
    """
    usual = {}
    for name, call in calls.items():
        call()
        usual[name] = _seconds(call)
    times: dict[Name, list[float]] = {name: [] for name in calls}
    said = time.monotonic()
    try:
        for number in range(rounds):
            for name, call in calls.items():
                times[name].append(_turn(call, usual[name]))
            if time.monotonic() - said >= _SAY_EVERY:
                said = time.monotonic()
                say(f"round {number + 1} of {rounds}")
    except KeyboardInterrupt as error:
        complete = min(map(len, times.values()))
        if complete < _FEWEST:
            raise
        raise Stopped({name: seconds[:complete] for name, seconds in times.items()}) from error
    return times


def compare(times: Mapping[Name, list[float]], base: Name) -> dict[Name, Timing]:
    """Return the medians, and the ratios to the call named `base`."""
    result = {}
    for name, seconds in times.items():
        ratios = [theirs / ours for theirs, ours in zip(times[base], seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        result[name] = Timing(1e3 * statistics.median(seconds), middle, low, high)
    return result


def machine(threads: int) -> dict[str, Any]:
    """Return a description of the machine: processor, cores, threads, instruction levels, versions."""
    from fineprune_runtime import levels
    from fineprune_runtime.processors import usable_processors

    return {
        "processor": processor(),
        "cores": usable_processors(),
        "threads": threads,
        "levels": list(levels()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def processor() -> str:
    """Return the processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, named), "") or platform.processor() or platform.machine() or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of the measured packages that are installed."""
    result = {}
    for name in _PACKAGES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _turn(call: Callable[[], Any], usual: float) -> float:
    """Return the seconds of one call, which usually takes `usual`."""
    if usual >= _SHORT:
        return _seconds(call)
    times = max(1, round(_WINDOW / max(usual, 1e-6)))

    def repeated() -> None:
        for _ in range(times):
            call()

    time.sleep(_PAUSE)
    repeated()
    return _seconds(repeated) / times
