"""Control lambda so that a penalized method reaches the requested density.

A penalty lambda * R(S) pushes scores below a threshold. Which lambda ends at which density depends on the
model, the data and the length of the run, and is unknown in advance. So the roles are swapped. At every
refresh the threshold is set to hit the scheduled density (Eq. 5) exactly, and lambda is adjusted by feedback
so that the threshold follows a path that ends at the paper's value: if the threshold is too high, the scores
have not fallen far enough, and lambda rises; if it is too low, lambda falls.

The feedback is proportional and has no memory: lambda is a function of only the step and the scores, so
nothing has to be saved, and a resumed run continues bit for bit.
"""

import math

_PER_WEIGHT = 1e-5  # lambda for a single score with the threshold on its path
_GAIN = 2.0  # change of log-lambda per unit of score between the threshold and its path
_RANGE = 4.0  # the error is clipped here, which bounds lambda to e^8 either way


def path(ramp: float, start: float, end: float) -> float:
    """Return the desired threshold, in units of score, at a `ramp` (0 to 1) of the schedule."""
    return start + (end - start) * ramp


def controlled_lambda(threshold: float, wanted: float, ramp: float, weights: int) -> float:
    """Return lambda for the next step.

    Args:
        threshold: the score at which the scheduled density cuts.
        wanted: the desired threshold, from `path`.
        ramp: the progress of the schedule, 0 to 1. Lambda grows with it, as that of the reference grows with
            tau.
        weights: the number of scores. R is their mean, so lambda is proportional to it.
    """
    if math.isinf(threshold):
        return 0.0
    error = min(_RANGE, max(-_RANGE, threshold - wanted))
    return _PER_WEIGHT * weights * ramp * math.exp(_GAIN * error)
