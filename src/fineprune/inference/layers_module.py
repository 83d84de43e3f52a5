"""Run the layers of ModernBERT as a whole in the engine."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.inference.encoder_module import EncoderModule
from fineprune_runtime.architectures import architecture


class LayersModule(EncoderModule):
    """Replace the layers of `ModernBertModel`, which it calls one after another, and the norm after them."""

    attention_type = "full_attention"  # whose mask and rotations the model then gives

    @classmethod
    def put(cls, owner: nn.Module, name: str, engine: Any, trainable: bool) -> None:
        """Replace the layers of a base model, its attribute `name`, by a single one."""
        config = cast(Any, owner.config)
        setattr(owner, name, nn.ModuleList([cls(engine, config, trainable)]))
        setattr(owner, str(architecture(config.to_dict()).final_norm), nn.Identity())

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the output of the norm after the last layer, in the shape and type of `hidden_states`."""
        if position_embeddings is not None:
            _check_positions(position_embeddings[0])
        return self.run(hidden_states, attention_mask, kwargs)


def _check_positions(cosines: Tensor) -> None:
    """Raise `FinepruneError` unless cosines, (batch, length, head size), are of the positions 0, 1, 2, …

    The angles of a pair of features are multiples of the first one's, and the first pair's is 1: its cosines
    are those of the whole numbers.
    """
    expected = torch.arange(cosines.shape[1]).float().cos()
    rounding = 1e-4 if cosines.dtype == torch.float32 else 1e-2
    if not torch.allclose(cosines[..., 0].float(), expected, rtol=0, atol=rounding):
        raise FinepruneError(
            "position_ids: an accelerated encoder counts tokens from 0; leave them out, or load the model "
            "again without accelerate"
        )
