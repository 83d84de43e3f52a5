"""Draw the layers of a model for a terminal: a bar for the density of each, and its remaining units."""

from fineprune.training.run.inspection import LayerDensity

_TERMINAL = 80
_WIDTH = 32  # of the longest bar, where the terminal has room for it
_BLOCKS = " ▏▎▍▌▋▊▉█"  # by eighths
_NEURONS = 8  # cells of the bar of a layer's neurons


def bars(layers: tuple[LayerDensity, ...], blocks: bool = True, pictures: bool = False) -> list[str]:
    """Return a line for each layer: its density as a bar, full for the densest, and its remaining units.

    Args:
        layers: The layers.
        blocks: False: bars are made of #, for a terminal that cannot show others.
        pictures: Add a cell for each head and a bar for the neurons, if the terminal has room.
    """
    for drawn_units in (pictures, False):
        columns = _columns(layers, blocks, drawn_units)
        used = sum(len(column[0]) + 2 for column in columns)
        if used + _WIDTH // 4 <= _TERMINAL:
            break
    width = min(_WIDTH, max(_WIDTH // 4, _TERMINAL - used))
    most = max(layer.density for layer in layers)
    drawn = ["", *(_bar(layer.density / most if most else 0.0, width, blocks) for layer in layers)]
    names, *others = columns
    lines = zip(names, [bar.ljust(width) for bar in drawn], *others, strict=True)
    return ["  ".join(line).rstrip() for line in lines]


def _columns(layers: tuple[LayerDensity, ...], blocks: bool, pictures: bool) -> list[list[str]]:
    """Return the columns beside the bars, each of one width: the name, the density, the units left."""
    stacks = {layer.stack for layer in layers if layer.layer is not None}
    columns = [
        ["layer", *(_name(layer, len(stacks) > 1) for layer in layers)],
        ["density", *(f"{layer.density:.2%}" for layer in layers)],
    ]
    for what, title in (("heads", "heads left"), ("neurons", "FFN neurons left")):
        remaining = [_remaining(layer, what) for layer in layers]
        if not any(remaining):
            continue
        columns.append([title, *(text or "-" for text in remaining)])
        if pictures:
            drawn = [_picture(layer, what, blocks) for layer in layers]
            columns.append(["", *drawn])
    aligned = []
    for column in columns:
        width = max(map(len, column))
        aligned.append([text.rjust(width) if column[0] else text.ljust(width) for text in column])
    return aligned


def _picture(layer: LayerDensity, what: str, blocks: bool) -> str:
    """Return a cell for each head, or the share of the neurons as a bar; empty where they are unknown."""
    if what == "heads":
        living = layer.living_heads or ()
        full = _BLOCKS[8] if blocks else "#"
        return "".join(full if head in living else "." for head in range(layer.heads or 0))
    return _bar((layer.neurons_left or 0) / layer.neurons, _NEURONS, blocks) if layer.neurons else ""


def _bar(share: float, width: int, blocks: bool) -> str:
    """Return a bar of that share of the width; any share above 0 is visible."""
    if not blocks:
        return "#" * (max(1, round(share * width)) if share else 0)
    eighths = max(1, round(share * width * 8)) if share else 0
    return (_BLOCKS[8] * (eighths // 8) + _BLOCKS[eighths % 8]).rstrip()


def _name(layer: LayerDensity, several: bool) -> str:
    number = "other" if layer.layer is None else str(layer.layer)
    return f"{layer.stack} {number}".strip() if several else number


def _remaining(layer: LayerDensity, what: str) -> str:
    """Return text such as "11 of 12"; empty where the number is unknown."""
    count, remaining = getattr(layer, what), getattr(layer, f"{what}_left")
    return "" if count is None else f"{remaining:,} of {count:,}"
