"""Several processes that train one model: who holds which rows, agreement, gathering."""
