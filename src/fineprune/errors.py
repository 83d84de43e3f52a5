"""The one error that a user's input can cause, and the one warning."""


class FinepruneError(ValueError):
    """Something the user gave cannot work: a setting, a file, a model.

    Its message is one line that names the bad value, what is allowed and what to do. The
    command line prints it and exits with code 2; anything else that escapes is our bug.
    """


class FinepruneWarning(UserWarning):
    """What was asked is done, yet not in the way that was most likely meant: slower, for one."""
