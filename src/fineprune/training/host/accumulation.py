"""Gradient accumulation: the loss of N micro-batches is that of one batch of all their rows.

transformers divides a micro-batch's loss by N unless the loss was divided already, by the items of the whole
step. It takes the latter for granted where the model's forward pass has `**kwargs`, but many heads drop the
number of items, and then the loss is N times too large (transformers issue 47688).
"""

from typing import Any

from transformers import Trainer

from fineprune.training.distillation.heads import head_of


def correct(trainer: Trainer, host: type[Trainer]) -> None:
    """Let transformers divide the loss, in place, except for hosts that count the items themselves.

    These are hosts with a loss of their own over the tokens of a causal language model, such as trl's
    SFTTrainer: all tokens of a step have one weight there. Elsewhere each micro-batch has one weight.

    Args:
        trainer: the pruning trainer.
        host: the class that it was made of.
    """
    if host.compute_loss is Trainer.compute_loss or head_of(trainer.model) != "next_tokens":
        trainer.model_accepts_loss_kwargs = False


def parts(trainer: Any, items: Any) -> int:
    """Return the number by which a term that joins the loss must be divided.

    It is 1 where transformers divides the whole loss later, else the number of micro-batches of the step.

    Args:
        trainer: the host.
        items: `num_items_in_batch`, as the host's loss got it; None outside a training.
    """
    scaled: bool | None = getattr(trainer, "loss_is_scaled_for_ga", None)  # transformers 5.19 and later
    if scaled is None:
        counted = trainer.model_accepts_loss_kwargs and items is not None
        scaled = counted or trainer.compute_loss_func is not None
    return getattr(trainer, "current_gradient_accumulation_steps", 1) if scaled else 1
