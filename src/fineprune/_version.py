"""The version of the package; rooms read it here, since they may not import `fineprune` itself."""

__version__ = "0.1.0"
