"""Define the base class of modules whose weights were handed over to an engine."""

import copy
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fineprune.errors import FinepruneError


class EngineModule(nn.Module):
    """A module without parameters: `engine` holds the weights in its own form, which cannot be read back.

    It therefore runs forward only, on the CPU, and cannot be saved; each attempt is a `FinepruneError` that
    says what to do instead. A deep copy shares the engine, whose weights never change.
    """

    is_accelerated = True  # what `pruning.targets.refuse_accelerated` looks for

    def __init__(self, engine: Any, trainable: bool) -> None:
        super().__init__()
        self.engine = engine
        self.trainable = trainable
        self.eval()

    @staticmethod
    def refuse_tracing() -> None:
        """Raise while a call is recorded as a graph: the engine's answer would become a constant of it.

        torch.compile is not refused: it calls the engine between its graphs.
        """
        is_recorded = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if not torch.compiler.is_dynamo_compiling():
            is_recorded |= get_proxy_mode() is not None  # make_fx, and torch.export by way of it
        if is_recorded:
            raise FinepruneError(
                "an accelerated model cannot be traced (torch.jit.trace, torch.export, make_fx, "
                "torch.onnx.export): trace it before accelerate, or serve it with fineprune_runtime"
            )

    def apply_engine(self, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `run` of `x` as float32, contiguous and without grad; a backward pass raises an error."""
        self.refuse_tracing()
        if self.training:
            raise FinepruneError(
                "this model is accelerated, and in training mode: call its eval(); to train, load it again "
                "without accelerate"
            )
        if x.device.type != "cpu":
            raise FinepruneError(
                f"this model is accelerated and runs on the CPU; its input is on {x.device}: "
                "move model and inputs back with .to('cpu'), or load it again without accelerate"
            )
        if torch.is_grad_enabled() and (self.trainable or x.requires_grad):
            # The flag alone makes the output ask for a backward pass where nothing before it is trained.
            flag = torch.empty(0, requires_grad=True)
            result: Tensor = _ForwardOnly.apply(x, flag, run)  # type: ignore[no-untyped-call]
            return result
        return run(x.detach().float().contiguous())

    def __deepcopy__(self, memo: dict[int, Any]) -> "EngineModule":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        memo[id(self.engine)] = self.engine
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise FinepruneError(
            "an accelerated model cannot be pickled: save it with save_compact before it is accelerated, and "
            "let each process load and accelerate it"
        )

    def _save_to_state_dict(self, *_: Any) -> NoReturn:
        raise FinepruneError(
            "an accelerated model has no weights to save: save it before accelerate, or load it again"
        )

    def _load_from_state_dict(self, *_: Any) -> NoReturn:
        raise FinepruneError("an accelerated model takes no weights: load them before accelerate")


class _ForwardOnly(torch.autograd.Function):
    """Run an engine forward; raise an explanation if a gradient is requested."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flag: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        return run(x.float().contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise FinepruneError(
            "no gradient passes through an accelerated model: train it before accelerate, or load it again; "
            "to only run it, use torch.no_grad()"
        )
