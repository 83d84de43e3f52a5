"""The section `model` of a recipe."""

from dataclasses import dataclass
from typing import Any

from fineprune._messages import choose
from fineprune._validation import is_number
from fineprune.errors import FinepruneError
from fineprune.structure import REMOVABLE, units_of
from fineprune.training.run.first_cut import cut_config
from fineprune.training.run.training_config import whole


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section: a pre-trained model, or its first layers."""

    name: str
    """A local folder, a name on the hub, "minilm" (all-MiniLM-L6-v2 from the extra `demo`), or "mpnet"
    (all-mpnet-base-v2, of BERT-base's size, from the extra `mpnet`)."""

    layers: int | tuple[int, ...] | None = None
    """Keep only the first N transformer layers, or those of a list, from 0 on: [0, 2, 4]. None: all."""

    structure: Any = None
    """Cut the model before it is trained: the heads or neurons of least size go, as
    {attention: head, feed_forward: neuron}; needs `density`. None: it is trained whole."""

    density: float | None = None
    """Share of each layer's heads or neurons that `structure` leaves."""

    low_rank: float | None = None
    """Put two thin matrices in the place of each one in the layers, of one N-th of its elements, as 3. None:
    the matrices are whole."""

    attention: str | None = None
    """How transformers computes attention, "eager" or "sdpa": the same values but for rounding, at another
    speed. None: eager for the steps of a run without dropout in bfloat16 on a CPU, where torch's fused
    backward is slow on batches of fewer than 192 tokens, and "sdpa" for longer ones and evaluations; else
    what transformers chooses."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model; read it first."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise FinepruneError(f"model.name={self.name!r}: must be a folder, a hub name, minilm or mpnet")
        if isinstance(self.layers, (list, tuple)):
            for layer in self.layers:
                whole("model.layers", layer, 0)
            object.__setattr__(self, "layers", tuple(self.layers))
        else:
            whole("model.layers", self.layers, 1, optional=True)
        if (self.structure is None) != (self.density is None):
            raise FinepruneError("model: structure and density go together; give both, or neither")
        if self.density is not None:
            try:
                config = cut_config(self.structure, self.density)
            except FinepruneError as error:
                raise FinepruneError(f"model.{error}") from error
            if any(unit not in REMOVABLE for unit in units_of(config.structure)):
                raise FinepruneError(
                    f"model.structure={self.structure!r}: leaves zeros in the model, or its size; give heads "
                    "and neurons alone, {attention: head, feed_forward: neuron}"
                )
            object.__setattr__(self, "structure", config.structure)
        if self.low_rank is not None and not (is_number(self.low_rank) and self.low_rank >= 1):
            raise FinepruneError(
                f"model.low_rank={self.low_rank!r}: expected a number of at least 1; 3 leaves a third of the "
                "weights"
            )
        if self.attention is not None:
            choose(self.attention, ("eager", "sdpa"), "model.attention")
        if not isinstance(self.trust_remote_code, bool):
            raise FinepruneError(f"model.trust_remote_code={self.trust_remote_code!r}: must be true or false")
