"""docs/structures.md, from the table that the tests check.

python tests/architectures/structures.py > docs/structures.md
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from architectures.shrinking import SHRINKS, Shrinks

HEAD = """\
# Smaller shapes

A pruned model has zeros. A runtime that multiplies by them gains nothing, unless whole attention heads or
feed-forward neurons are zero and are removed:

```python
fineprune.finalize(model)  # or any model with zeros, whatever made them
shrunk = fineprune.shrink(model)  # in place
print(shrunk)  # heads and neurons by layer, parameters, FLOPs
fineprune.costs(model, length=128)  # weights and multiply-adds by layer and half, dense and non-zero
```

**What is empty.** A neuron that nothing reads (its column of the output matrix is zero) or that is a
constant (its row of the input matrix is zero: the activation of its bias). A head that nothing reads, or
without rows of V: it gives V's bias whatever its keys are. Constants go into the bias of the matrix that
reads them; where it has none, the unit stays. A head without rows of Q or K is not empty: its attention
is uniform, and it gives the mean of the values. Heads that share K and V go together or not at all.

**What is proved.** Names and shapes propose which lines of a matrix belong to a head or neuron, but no
list of architectures decides. The smaller model must give the same answers and the same hidden states
after each layer, within 1e-4 of the largest value, on two small batches in float32 (`probe=` gives
others). Neurons of all layers of a stack are tried first, then heads. What is not proved is put back, and
`shrunk.refused` says why. `shrink` raises an error where noise in the empty units changes no answer,
since such a probe shows nothing.

**What remains.** Layers may have different widths. If all heads or all neurons of a layer are empty, one
stays, of zeros, since many runtimes dislike a width of 0. `round_to=8` keeps as many empty neurons as
make each width a multiple of 8. Output rows and the hidden size stay. Parameters are replaced, so build
an optimizer afterwards.

**Ordinary models.** Where all layers have the same widths, and the class of the model can be given them,
the configuration is edited (`shrunk.ordinary`). `save_pretrained` then writes a model that opens
anywhere, without fineprune. BERT and most others take another number of neurons, but no other number of
heads: they compute the size of a head as hidden size / heads.

| architecture | neurons | heads | ordinary with equal widths of | note |
|---|---|---|---|---|
"""

TAIL = """
SqueezeBERT (convolutions in groups) and PoolFormer (convolutions over pixels) have no heads or neurons
that can be told, and `shrink` refuses them. Neurons of experts that are kept in one three-dimensional
parameter stay.

Written by `python tests/architectures/structures.py > docs/structures.md` from the table that
[test_shrink.py](../tests/pruning/test_shrink.py) checks, with tiny models of random weights: units of any
number, layers with an empty half, and equal widths. The answers of the shrunk models are within 1e-5 of
those before, in float32. Class names are those of transformers 5.23.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_row(name, entry) for name, entry in SHRINKS.items() if entry) + TAIL


def _row(name: str, entry: Shrinks) -> str:
    heads = {"no": "refused", "equal widths": "if all layers keep as many"}.get(entry.heads, "yes")
    ordinary = {"both": "neurons, heads", "none": "no"}.get(entry.ordinary, "neurons")
    return f"| {name} | yes | {heads} | {ordinary} | {entry.note} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
