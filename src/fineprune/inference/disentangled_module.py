"""Run the encoder of DeBERTa as a whole in the engine."""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from fineprune.errors import FinepruneError
from fineprune.inference.encoder_module import EncoderModule, keep_mask, refuse


class DisentangledModule(EncoderModule):
    """Replace `DebertaV2Model.encoder`, with the same outputs.

    Padding is after the tokens: torch lets a masked first token, which heads read, attend to all padding.
    """

    @classmethod
    def put(cls, owner: nn.Module, name: str, engine: Any, trainable: bool) -> None:
        """Replace the encoder of a base model, its attribute `name`."""
        super().put(owner, name, engine, trainable)
        # The base model asks its encoder for all hidden states, whether its caller does or not.
        owner.register_forward_pre_hook(_refuse_states, with_kwargs=True)

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> BaseModelOutput:
        """Return the last hidden state, and as `hidden_states` this one alone."""
        mask = keep_mask(attention_mask, *hidden_states.shape[:2])
        if mask is not None and not bool(mask[:, 0].all()):
            raise FinepruneError(
                "the attention mask hides the first token of a text, which DeBERTa then computes from its "
                "padding: pad on the right, or load the model again without accelerate"
            )
        result = self.run(hidden_states, mask, kwargs | {"output_hidden_states": False})
        return BaseModelOutput(last_hidden_state=result, hidden_states=(result,))


def _refuse_states(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    refuse("output_hidden_states", kwargs.get("output_hidden_states"), model.config)
