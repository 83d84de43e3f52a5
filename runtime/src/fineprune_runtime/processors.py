"""Count the threads that can run at once: this process's processors, less what a container may not use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
GROUPS_OF_PROCESS = Path("/proc/self/cgroup")


def usable_processors(cgroups: Path = CGROUPS, of_process: Path = GROUPS_OF_PROCESS) -> int:
    """Return the number of processors that this process may use, at least 1.

    A container's quota of CPU time counts, rounded up: more threads than that would be stopped in the middle
    of every period. Control groups are nested, and the smallest quota around this process holds.

    Args:
        cgroups: where the control groups are mounted.
        of_process: the file that names the groups of this process.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # of another system than Linux
        cores = os.cpu_count() or 1
    quotas = [quota for group in _groups(cgroups, of_process) if (quota := _quota(group)) is not None]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def _groups(cgroups: Path, of_process: Path) -> Iterator[Path]:
    """Yield the folders of the groups that limit CPU time, from this process's own to the outermost.

    A container may see its own group as the outermost under the name that the host has for it: a folder that
    does not exist has no quota.
    """
    tops = {"": cgroups, "cpu": cgroups / "cpu"}  # versions 2 and 1
    yield from tops.values()
    try:
        lines = of_process.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        for top in (tops[name] for name in controllers.split(",") if name in tops):
            group = top / path.lstrip("/")
            while group != top:
                yield group
                group = group.parent


def _quota(group: Path) -> float | None:
    """Return the processors that a group's quota amounts to (version 2, else 1); None for no quota."""
    try:
        limit, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        except (OSError, ValueError):
            return None
    try:
        share = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return share if share > 0 else None  # version 1 has -1 for no quota
