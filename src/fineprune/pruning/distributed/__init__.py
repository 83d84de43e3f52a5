"""Prune on several processes that train one model: selection over all rows, agreement, gathering."""
