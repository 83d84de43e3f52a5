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
feed-forward neurons are zero and are removed. So `structure` says what stays or goes together:

| `structure` | units | who gains |
|---|---|---|
| `"element"` (the default) | single weights | the engine |
| `[4, 1]` | blocks of 4 rows x 1 column, in every matrix | the engine, [more](engine.md#blocks) |
| `"row"`, `"column"` | outputs, inputs of each matrix | |
| `{attention: head, feed_forward: neuron}` | heads, neurons | every runtime: the model gets smaller |
| `{attention: [query_dim, value_dim], feed_forward: neuron}` | dims of heads, neurons | both |
| `{attention: [32, 32], feed_forward: neuron}` | Block Pruning's | every runtime, by neurons, empty heads |
| `{attention: attention, feed_forward: feed_forward}` | halves of a layer | every runtime |
| `[{attention: head, feed_forward: neuron, density: 0.5}, element]` | the first, then single weights | both |

```
fineprune run short-sst2 'pruning.structure={attention: head, feed_forward: neuron}' \\
    pruning.method=soft_movement pruning.warmup=0.02 pruning.density=0.5 --out runs/half
```

Rows are outputs and columns inputs of every matrix, also of GPT-2's Conv1D, which stores them the other
way round.

Every method that ranks something takes every structure: magnitude ranks the root mean square of a unit's
weights, the others give each unit one score. A part that is not named stays whole; `{unit: head, density:
0.4}` gives a part its own density. With `scope: local` (magnitude, movement, fisher, grain, flow) all
layers keep equal shares, hence equal widths; a global ranking keeps more of the layers that matter, and
widths differ. A run that prunes heads, neurons or halves ends with the smaller model, and `results.json`
says what remains (`left`, `shrunk`). `fineprune inspect` and the page of the run show which heads and how
many neurons each layer still has, and the FLOPs. By `pins`, the recipes' method, heads and neurons are as
accurate as by soft movement, but it keeps heads and drops neurons, so the model does more work ([short
runs](short-runs.md#measured)).

**How.** A unit that spans several matrices is masked where it is read: a head in O, a neuron in the
output matrix. Its other weights train on unmasked, since nothing sees them, so that it can come back;
they count as pruned, and become zero at the end. Before a step is spent, one unit of the first and of the
last layer is silenced where it is read and everywhere; answers that differ refuse the structure
(`prepare(..., probe=)` gives other inputs). Heads that share keys and values are one unit.

**Inside of heads.** A `value_dim` is a row of V with the column of O that reads it, one of the 64 dims of a
head of BERT-base; of heads that share keys and values, a column of each of them. A `query_dim` is a row of K
with the row of Q that it is multiplied by. `attention: [query_dim, value_dim]` takes both; with one of them,
the matrices of the other stay whole, and do not count. The mask of a query dim is on K and leaves the bias:
what that adds to the products of a query is the same for every key, so that no softmax sees it. Rotary and
relative positions make another product of it, and are refused by the test above. `shrink` removes a head
when its last value dim is gone, with its rows of Q and K. Dims inside of a head that stays are zeros in the
smaller model: the engine skips them, other runtimes multiply by them, and `refine` keeps them with
`hold_zeros: true`. They cost weights alone: the product of a head's attention stays until the head goes, so
`budget: flops` takes heads only.

**Two levels.** A list cuts heads and neurons first, then the elements of what stays, in one run:

```
fineprune run short-sst2 pruning.density=0.1 --out runs/both \\
    'pruning.structure=[{attention: head, feed_forward: neuron, density: 0.5}, element]'
```

The outer level keeps half of the weights by whole heads and neurons; without a `density` of its own it
keeps the square root of the whole one, so that both levels cut to the same share. Of the weights of what
stays, as many stay as make 10 % of all, exactly; weights of removed units are not ranked, and keep their
masks in case the unit returns. Both levels follow the schedule, each with its scores and, where the
method has a penalty, with its own. Both gains multiply: the model that is left is smaller, and has zeros
for the engine. `refine` goes on with `hold_zeros: true`.

**Two steps.** The recipes `two-steps-first` and `two-steps-second` do so in two runs, after MLPruning: heads
and neurons, then blocks of the smaller model, whose teacher is the model of the first step.

**What holds the density.** CoFi holds it by a Lagrangian with two learned multipliers, and MLPruning lets
each matrix learn its share. Neither is an option here, since neither gave more than what is there (`python
benchmarks/density_control.py`; SST-2, three layers of MiniLM, the recipe `short-sst2`, three seeds, mean
and standard error, an AMD EPYC with AVX2 alone; single weights at 3 % by soft movement, heads and neurons
at 25 % by movement):

| law | seeds | accuracy | of dense | density | threshold from its path |
|---|---:|---:|---:|---:|---:|
| soft movement, controlled | 3 | 82.8 ± 0.6 | 97.6 % | 3.00 % | +0.97 |
| soft movement, lagrangian, rate 0.01 | 3 | 82.3 ± 0.3 | 97.0 % | 3.00 % | +5.32 |
| soft movement, lagrangian, rate 1 | 3 | 82.0 ± 0.7 | 96.7 % | 3.00 % | +4.15 |
| movement, equal shares | 3 | 83.4 ± 0.2 | 98.3 % | 25.00 % |  |
| movement, one ranking | 3 | 82.9 ± 0.3 | 97.8 % | 25.09 % |  |
| movement, learned | 3 | 83.3 ± 0.3 | 98.2 % | 25.04 % |  |

With the same seed the controlled lambda is 0.5 ± 0.3 points ahead of the Lagrangian at CoFi's rate and 0.8
± 0.1 at a larger one, and the threshold ends nearer to its path. Learned shares are no different from equal
ones (-0.1 ± 0.1), and both are ahead of one ranking of all matrices (by 0.4 ± 0.1 and 0.5 ± 0.1), so for
heads and neurons under `movement` keep the scope `local`.

**GRAIN.** The recipe `grain` prunes MNLI's BERT-base to dims of heads and neurons by the
[method](methods.md#grain) of that name, under which thin heads empty, with a teacher's logits and states.

**Layers.** `model.layers: [0, 2, 4]` keeps these layers. `training.layer_drop: 0.2` leaves out each layer
with this probability while the model trains (LayerDrop), so that it can do without some; its authors found
that a few epochs of fine-tuning do not make an ordinary model robust. A student of fewer layers may learn
hidden states from a teacher of more (`distillation.layers`, [distillation.md](distillation.md)).

**Budget.** `density` is a share of the weights; with `budget: flops` of the multiply-adds of a text of
`budget_length` tokens, where a head costs its attention product too. `round_to: 8` rounds the neurons of
each layer. With `budget: latency` it is a share of the dense model's time. Units of different cost are
ranked by score and paid by cost; the selection stops when the budget that is left is less than half of
what the next unit costs. Single weights of one part beside units of another (more than 2^20 in all) need
a density each.

**Budget of milliseconds.** On the machine that will serve the model, measure what heads and neurons of your
fine-tuned model (`runs/dense`) take there, then prune by it (the runtimes are in the extra `export`):

```
fineprune bench runs/dense --table --runtime "OpenVINO int8" --threads 1 --length 128
fineprune run short-sst2 dense=runs/dense 'pruning.structure={attention: head, feed_forward: neuron}' \\
    pruning.budget=latency pruning.latency_table=runs/dense/latency-openvino-int8.json \\
    pruning.method=soft_movement pruning.warmup=0.02 pruning.density=0.5 --out runs/half-time
```

The table has the time of an attention at each number of heads, and of a feed-forward at 0.9, 0.81, … of
its neurons, each timed in turns with the dense model, less the time of a half with one unit, which is
what `shrink` leaves of an empty one. A line is fitted to each half. It is flat at first, because very
small halves are no faster. The next unit of a half costs the slope of its line, and the first one the
flat part, too. `density` is a share of the whole dense model's time, with embeddings and head; a density
below what these take is refused, and so is a table of other sizes, or of another length than
`budget_length`. The run ends with the time that was planned and the time that was measured, of the
smaller model in turns with the dense one; a gap of more than 10 % is a warning. On another processor than
the table's a run is planned all the same, but not measured.

MiniLM's six layers on SST-2 (600 steps of bfloat16, seed 0, dense 87.3 %), by these commands with
`--length 32`, `pruning.budget_length=32`, `pruning.method=soft_movement pruning.warmup=0.02`, on one thread
of an AMD EPYC (Zen 4, AVX-512). The dense model took 2.48 ms, 0.34 of them in no head or neuron, and the
table 9 minutes of the idle machine:

| asked for | planned | measured, idle | accuracy | heads left of 72 | neurons left of 9,216 | weights left |
|---|---|---|---|---|---|---|
| 50 % | 51.0 % | 49.6 % | 84.3 % (96.6 % of dense) | 20 | 4,763 | 43.7 % |
| 35 % | 35.7 % | 32.6 % | 84.6 % (97.0 %) | 13 | 2,718 | 25.7 % |

Measured by three calls of `share_of(dense, smaller, table, rounds=21)` of
`fineprune.inference.bench.latency`, which gave 48.2 to 50.8 % and 29.7 to 35.0 %. At the ends of the runs,
beside two trainings, 63.4 and 29.4 % were measured, and a table that was made beside them could not be used:
do both on an idle machine.

**Refine.** A section `refine` makes the run go on after the model was made smaller, with the same teacher:

```yaml
refine: {steps: 300, learning_rate: 2e-4, fill: 0.01}
```

`fill` replaces zeros that remain (of blocks) by small numbers first, as Block Pruning does; `hold_zeros:
true` keeps them. The run before it is in the folder `pruned` of the run, and its results in
`results.json`.

**Cut first.** `model: {name: minilm, structure: {feed_forward: neuron}, density: 0.5}` cuts by size before
anything is trained, the same share in each layer, and all of the training is then of the smaller model.

**Without training.** `fineprune.calibrate(model, batches, structure={...})` cuts heads and neurons of a
trained model by what its layers give on some texts, without labels, and fits what remains
([calibration.md](calibration.md)).

## Empty heads and neurons
A finalized model, or any with zeros, is made smaller by hand so:

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

**Saving.** Any other shrunk model is saved by `save_pretrained` and `save_compact` with the shapes that its
layers have, and the original sizes in config.json. `from_pretrained` opens it in any process that imported
fineprune, and stops on the shapes in any other. Before a weight is loaded, the shapes are checked: whole
heads, matrices of a layer that agree, nothing larger than configured ([format.md](format.md)). `fineprune
compact small plain --format dense` pads it with heads and neurons of zeros: it then opens anywhere, answers
alike, and is no faster.

| architecture | neurons | heads | ordinary with equal widths of | note |
|---|---|---|---|---|
"""

TAIL = """
SqueezeBERT (convolutions in groups) and PoolFormer (convolutions over pixels) have no heads or neurons
that can be told, and `shrink` refuses them. Neurons of experts that are kept in one three-dimensional
parameter stay.

Written by `python tests/architectures/structures.py > docs/structures.md` from the table that
`tests/pruning/test_shrink.py` checks, with tiny models of random weights: units of any
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
