"""The signals by which a machine takes a run's process away, before torch is there to handle them.

Nothing is imported here but the standard library: the command line comes here first.
"""

import contextlib
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

PREEMPTED = 75
"""Exit code of a run that SIGTERM or SIGHUP stopped: EX_TEMPFAIL of sysexits.h, "try again later"."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""A machine that is shut down, a terminal that is closed; `nohup` has the latter ignored."""


def ending(number: int) -> BaseException:
    """Return the exception by which a signal ends the program."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(PREEMPTED)


class AnswersSignals(ABC):
    """Answers Ctrl-C and the `SIGNALS` by `_note`; use it as a context.

    Signals that the parent ignores stay ignored, and outside the main thread Python allows no handlers.
    """

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *SIGNALS):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @abstractmethod
    def _note(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal."""


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
