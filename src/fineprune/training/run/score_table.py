"""Show the scores of a run beside those of its dense model."""

from collections.abc import Mapping
from typing import Any


def score_lines(results: Mapping[str, Any]) -> list[str]:
    """Return a table of scores, one a line, with the share that is kept; none for fewer than three scores.

    Args:
        results: the content of results.json.
    """
    scores, dense = results.get("scores") or {}, (results.get("dense") or {}).get("scores") or {}
    names = [name for name in scores if name in dense and not name.endswith("loss")]
    if len(names) < 3:
        return []
    width = max(map(len, names))
    lines = [f"{'':{width}}  {'dense':>7}  {'pruned':>7}  {'kept':>7}"]
    for name in names:
        share = f"{scores[name] / dense[name]:7.1%}" if dense[name] > 0 else f"{'-':>7}"
        lines.append(f"{name:{width}}  {dense[name]:7.4f}  {scores[name]:7.4f}  {share}")
    return lines
