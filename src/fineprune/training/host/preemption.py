"""The signals by which a machine takes a run's process away, before torch is there to handle them.

Nothing is imported here but the standard library: the command line comes here first.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

PREEMPTED = 75
"""Exit code of a run that SIGTERM or SIGHUP stopped: EX_TEMPFAIL of sysexits.h, "try again later"."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""A machine that is shut down, a terminal that is closed; `nohup` has the latter ignored."""


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """Exit with `PREEMPTED` where one of the `SIGNALS` would end the program, unless it is ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, lambda *_: sys.exit(PREEMPTED))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
