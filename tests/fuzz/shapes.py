"""The files of a shrunk model, whose shapes decide the sizes of its layers."""

import copy
import json
import math
import random
from pathlib import Path

import torch
from fuzz.weights import Stored, make_case, read_target, written
from support import tiny_config
from transformers import BertForSequenceClassification

import fineprune
from fineprune.checkpoint import shapes
from fineprune.errors import FinepruneError
from fineprune.pruning.targets import find_targets
from fineprune_runtime.manifest import KEY


def make_folder(folder: Path) -> Path:
    """A BERT of 4 heads and 24 neurons, of which 3 and 5, then 1 and 6 remain; V is sparse."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        config = tiny_config(num_attention_heads=4, intermediate_size=24, initializer_range=0.3)
        model = BertForSequenceClassification(config).eval()
        for index, layer in enumerate(model.bert.encoder.layer):
            layer.attention.output.dense.weight[:, : 4 + 8 * index] = 0
            layer.output.dense.weight[:, 5 + index :] = 0
            layer.attention.self.value.weight[torch.rand_like(layer.attention.self.value.weight) > 0.3] = 0
        fineprune.shrink(model)
    fineprune.save_compact(model, folder)
    return folder


class Shapes:
    """`shapes.fit`: it refuses, or the model has the shapes of the files, none larger than configured."""

    share = 0.5
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        self.target = read_target(make_folder(folder))
        self.size = len(self.target.content)
        with torch.device("meta"):
            self.model = BertForSequenceClassification(
                tiny_config(num_attention_heads=4, intermediate_size=24)
            )
        self.full = {name: module.weight.shape for name, module in find_targets(self.model).items()}

    def check(self, chance: random.Random, scratch: Path) -> str:
        place, model = scratch / "model.safetensors", copy.deepcopy(self.model)
        place.write_bytes(self._other_shapes(chance) if chance.random() < 0.5 else self._damaged(chance))
        try:
            shapes.fit(model, [place])
        except FinepruneError:
            return "refused"
        fitted = {name: module.weight.shape for name, module in find_targets(model).items()}
        for name, shape in fitted.items():
            if not all(0 < size <= most for size, most in zip(shape, self.full[name], strict=True)):
                raise AssertionError(f"{name}: {shape} passed, of at most {self.full[name]}")
        told = all(self.target.shapes[f"{name}.weight"] == tuple(shape) for name, shape in fitted.items())
        return "same" if told else "other"

    def _damaged(self, chance: random.Random) -> bytes:
        return make_case(chance, self.target).content

    def _other_shapes(self, chance: random.Random) -> bytes:
        """Some whole matrices and biases get a few lines more or fewer."""
        tensors, manifest = dict(self.target.tensors), json.loads(self.target.metadata[KEY])
        whole = [name for name in tensors if name not in self.target.arrays and "encoder" in name]
        for name in chance.sample(whole, chance.choice((1, 1, 2, 4))):
            shape = list(tensors[name].shape)
            axis = chance.randrange(len(shape))
            shape[axis] = max(shape[axis] + chance.choice((-8, -4, -1, 1, 4, 8, 64)), 0)
            tensors[name] = Stored("F32", shape, bytes(4 * math.prod(shape)))
        return written(self.target.metadata, manifest, tensors)
