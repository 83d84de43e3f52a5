"""The lambda that lands on the asked density.

A penalty lambda * R(S) pushes scores below a threshold; which lambda ends at which density
depends on the model, the data and the length of the run, and nobody knows it beforehand. So
the roles are turned round. At every refresh the threshold is placed exactly where the density
schedule (Eq. 5) wants it, and lambda follows by feedback so that this placed threshold stays
on a path which ends at the paper's own threshold: too high a threshold means that the scores
have not fallen far enough, and lambda rises; too low, and it falls.

The feedback is proportional and has no memory: lambda is a function of the step and of the
scores alone, so nothing has to be saved and a resumed run goes on bit for bit.
"""

import math

_PER_WEIGHT = 1e-5  # lambda that a score alone would get where the threshold is on its path
_GAIN = 2.0  # log-lambda per unit of score by which the threshold is off its path
_RANGE = 4.0  # the error is clipped here, which bounds lambda to e^8 either way


def path(ramp: float, start: float, end: float) -> float:
    """Where the threshold should be, in units of score, at a `ramp` (0 to 1) of the schedule."""
    return start + (end - start) * ramp


def controlled_lambda(threshold: float, wanted: float, ramp: float, weights: int) -> float:
    """Lambda for the next step.

    `threshold` is the score at which the asked density cuts, `wanted` where it should be
    (`path`), `ramp` the progress of the schedule: lambda grows with it, as the reference's does
    with tau. R is a mean over all `weights` scores, hence the factor.
    """
    if math.isinf(threshold):
        return 0.0
    error = min(_RANGE, max(-_RANGE, threshold - wanted))
    return _PER_WEIGHT * weights * ramp * math.exp(_GAIN * error)
