"""docs/architectures.md, from the table that the tests check.

python tests/architectures/table.py > docs/architectures.md
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from architectures.models import ARCHITECTURES, Architecture

HEAD = """\
# Architectures

What is pruned is read off the module tree, from no list of models: every linear layer inside the repeated
blocks, that is inside the elements of a ModuleList or Sequential which hold at least two each. Linear is
what multiplies by one matrix, position by position: nn.Linear, transformers' Conv1D, and a convolution of
kernel size 1, in groups or not. Embeddings, poolers and heads lie outside, and so do the tables that a head
is tied to. `targets` and `exclude` in `PruningConfig` change the choice.

Tried are the architectures of this table, tiny and with random weights: `prepare`, 20 steps by magnitude,
movement, soft movement and L0, `finalize`, `save_compact` and `save_pretrained`, `from_pretrained`. For
each of them the density is reached to the weight, these matrices are pruned and no others, what is tied
stays tied, and the models loaded from the compact and from the plain folder give the answers of the saved
one, bit by bit.

The last column says what `fineprune.accelerate` runs in the engine, with answers within 1e-4 of the dense
ones in float32: the encoder **whole**, each pruned matrix **layer by layer**, or **no** part of it, where
everything stays dense in torch. Class names and matrices are those of transformers 5.23; N is the number of
the layer.

| architecture | class | pruned in each layer | special | engine |
|---|---|---|---|---|
"""

TAIL = """
Not pruned are experts that transformers keeps in one three-dimensional parameter (Mixtral, Qwen3-MoE): of
those models the attention alone is. Blocks of different classes in one list (SwiftFormer) are not taken for
repeated ones; where nothing is found, `prepare` says so and names linear layers for `targets`.

Written by `python tests/architectures/table.py > docs/architectures.md` from the table that
`tests/architectures/test_architectures.py` checks: one method for each
architecture in `make test`, all four in `make stress`.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_row(name, entry) for name, entry in ARCHITECTURES.items()) + TAIL


def _row(name: str, entry: Architecture) -> str:
    pruned = "; ".join(
        f"`{where.replace('{0,1}', 'N')}.`: {', '.join(f'`{end}`' for end in ends)}"
        for where, ends in entry.pruned.items()
    )
    return f"| {name} | `{entry.kind}` | {pruned} | {entry.special} | {entry.engine} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
