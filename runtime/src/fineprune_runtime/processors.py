"""How many threads can run at once: the processors of this process, less what a container may not use."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_processors(cgroup: Path = CGROUP) -> int:
    """Return the number of processors that this process may use, at least 1.

    A container's quota of CPU time counts, rounded up: more threads than that would be stopped in the middle
    of every period.

    Args:
        cgroup: where the control groups are mounted.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # of another system than Linux
        cores = os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Return the processors that the quota amounts to (control groups v2, else v1); None for no quota."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except (OSError, ValueError):
            return None
    try:
        share = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return share if share > 0 else None  # version 1 has -1 for no quota
