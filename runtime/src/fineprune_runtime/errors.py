"""The one error that a user's input can cause."""


class EngineError(ValueError):
    """Something that was given cannot work: the message names it, what is allowed and what to do."""
