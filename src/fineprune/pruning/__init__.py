"""The method: needs torch alone."""
