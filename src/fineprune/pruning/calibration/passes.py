"""Run batches through a model up to one matrix after the other, without computing finished blocks again.

The output of a finished block is kept for each batch, and given in its place: of the last finished block of
each list of blocks as it is, of those before it by a tensor of zeros that takes no memory, since only the
next block reads a block. Whether that is so is tried on the first batch; where it is not, as with layers that
are used several times, everything is computed anew for each matrix.
"""

import contextlib
import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fineprune._messages import listing, one_line
from fineprune.errors import FinepruneError
from fineprune.pruning.probe import difference, evaluating, tensors_in, without_autocast

Batch = Any
Take = Callable[[str, Tensor, Batch], None]

_SAME = 1e-4  # of the largest value


class _Reached(Exception):
    """Ends a forward pass whose rest is not needed."""


class Passes:
    """The batches, the model, and how far its blocks are finished.

    Args:
        model: The model.
        batches: What it is called with: mappings of its arguments, tuples of them, or tensors.
        matrices: The linear layers of interest, by dotted name.
        blocks: The dotted names of the model's repeated blocks.

    Raises:
        FinepruneError: There are no batches, the model does not take them, or they do not reach a matrix.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        matrices: Mapping[str, nn.Module],
        blocks: Sequence[str],
    ) -> None:
        device = next(model.parameters()).device
        if isinstance(batches, (Mapping, Tensor)):
            raise FinepruneError(
                f"batches={type(batches).__name__}: is one batch; give a list of batches: [batch]"
            )
        if not isinstance(batches, Iterable):
            raise FinepruneError(f"batches={batches!r}: give some inputs of the model, such as a data loader")
        self.batches = [_prepared(model, batch, device) for batch in batches]
        if not self.batches:
            raise FinepruneError(
                "batches: there are none; give some inputs of the model, such as texts of its task"
            )
        self._model, self._matrices = model, matrices
        self._owner = {name: _owner(name, blocks) for name in matrices}
        self._innermost = [
            name for name in blocks if not any(other.startswith(f"{name}.") for other in blocks)
        ]
        self._outputs: dict[str, list[Any]] = {}
        self._forwards: dict[str, Any] = {}
        self._batch = 0
        with self._quiet():
            self.order = self._discover()
            self._once = all(count == 1 for count in self._calls.values())
            self._blocks = [name for name in self._calls if name not in matrices]
            self._replays = self._once and self._can_replay()

    def inputs(self, names: Sequence[str], take: Take) -> None:
        """Call `take` with each input of some matrices: the matrix's name, (..., inputs), and the batch."""
        with self._quiet():
            self._finish_before(self._owner[names[0]])
            waiting: set[str] = set()

            def see(name: str, value: Tensor) -> None:
                take(name, value, self.batches[self._batch])
                waiting.discard(name)
                if self._once and not waiting:
                    raise _Reached

            with self._watching({name: self._matrices[name] for name in names}, see):
                for _ in self._each_batch():
                    waiting |= set(names)
                    self._run()

    def close(self) -> None:
        """Let finished blocks compute again."""
        for name, forward in self._forwards.items():
            block = self._model.get_submodule(name)
            del block.forward
            vars(block).update({} if forward is None else {"forward": forward})
        self._outputs.clear()
        self._forwards.clear()

    def _discover(self) -> list[str]:
        """Return the matrices in the order of their first calls, and count all calls on the way."""
        names = dict.fromkeys([*self._innermost, *filter(None, self._owner.values())])
        blocks = {name: self._model.get_submodule(name) for name in names}
        self._calls: Counter[str] = Counter()
        for _ in self._each_batch():
            calls: Counter[str] = Counter()
            with self._watching(blocks | dict(self._matrices), functools.partial(_count, calls)):
                self._run()
            self._calls |= calls  # the larger count of each
            missing = [name for name in self._matrices if name not in self._calls]
            if not missing:
                break
        if missing:
            raise FinepruneError(
                f"{listing(missing)}: no batch reaches {'it' if len(missing) == 1 else 'them'}; give other "
                "batches, or leave it out with exclude"
            )
        first = {name: place for place, name in enumerate(self._calls)}
        return sorted(self._matrices, key=lambda name: (first[self._owner[name] or name], first[name]))

    def _can_replay(self) -> bool:
        """Return whether each block, behind kept outputs, answers the first batch as it does in one pass."""
        if any(
            f"{other}.".startswith(f"{name}.")
            for name in self._blocks
            for other in self._blocks
            if other != name
        ):
            return False
        self._batch = 0
        expected: dict[str, list[Tensor]] = {}
        batches, self.batches = self.batches, self.batches[:1]
        try:
            with self._keeping(self._blocks, lambda name, output: expected.update({name: _floats(output)})):
                self._run()
            for name in self._blocks:
                self._finish([name])
                if not difference(expected[name], _floats(self._outputs[name][0])) <= _SAME:
                    return False
        except FinepruneError:  # a value that was given for an output does not fit
            return False
        finally:
            self.close()
            self.batches = batches
        return True

    def _finish_before(self, block: str) -> None:
        """Keep the outputs of all blocks before one, which do not change any more."""
        if self._replays and block in self._blocks:
            before = self._blocks[: self._blocks.index(block)]
            names = [name for name in before if name not in self._outputs]
            if names:
                self._finish(names)

    def _finish(self, names: Sequence[str]) -> None:
        outputs: dict[str, list[Any]] = {name: [] for name in names}

        def keep(name: str, output: Any) -> None:
            outputs[name].append(output)
            for earlier in names[: names.index(name)]:
                if _list_of(earlier) == _list_of(name):
                    outputs[earlier][-1] = _weightless(outputs[earlier][-1])
            if name == names[-1]:
                raise _Reached

        with self._keeping(names, keep):
            for _ in self._each_batch():
                self._run()
        for name, kept in self._outputs.items():
            if any(_list_of(name) == _list_of(other) for other in names):
                kept[:] = map(_weightless, kept)
        for name in names:
            block = self._model.get_submodule(name)
            self._outputs[name], self._forwards[name] = outputs[name], vars(block).get("forward")
            block.forward = functools.partial(self._kept, name)

    def _kept(self, name: str, *_args: Any, **_kwargs: Any) -> Any:
        """Return a kept output; a copy, because the model may change what it gets in place."""
        return tree_map_only(
            Tensor,
            lambda entry: entry.clone() if any(entry.stride()) else entry,
            self._outputs[name][self._batch],
        )

    def _each_batch(self) -> Iterator[None]:
        """Make each batch the current one, in turn."""
        for number in range(len(self.batches)):
            self._batch = number
            yield

    def _run(self) -> None:
        """Call the model with the current batch, until something ends the pass."""
        batch = self.batches[self._batch]
        try:
            if isinstance(batch, Mapping):
                self._model(**batch)
            else:
                self._model(*batch)
        except _Reached:
            pass
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
            kind, reason = type(self._model).__name__, one_line(error, 200)
            raise FinepruneError(f"batches: {kind} does not take batch {self._batch} ({reason})") from error

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        with torch.no_grad(), evaluating(self._model), without_autocast(self._model):
            yield

    @contextlib.contextmanager
    def _watching(self, modules: Mapping[str, nn.Module], see: Callable[[str, Any], None]) -> Iterator[None]:
        """Let `see` have the name and the first input of each call of some modules."""

        def hook(name: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
            see(name, args[0] if args else next(iter(kwargs.values()), None))

        with contextlib.ExitStack() as hooks:
            for name, module in modules.items():
                handle = module.register_forward_pre_hook(functools.partial(hook, name), with_kwargs=True)
                hooks.callback(handle.remove)
            yield

    @contextlib.contextmanager
    def _keeping(self, blocks: Sequence[str], keep: Callable[[str, Any], None]) -> Iterator[None]:
        """Let `keep` have the name and the output of each call of some blocks."""

        def hook(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
            keep(name, output)

        with contextlib.ExitStack() as hooks:
            for name in blocks:
                block = self._model.get_submodule(name)
                hooks.callback(block.register_forward_hook(functools.partial(hook, name)).remove)
            yield


def _prepared(model: nn.Module, batch: Batch, device: torch.device) -> Batch:
    """Return a batch as a mapping or a tuple, on the device, and without a cache of keys and values."""
    if isinstance(batch, Tensor):
        batch = (batch,)
    if not isinstance(batch, (Mapping, tuple, list)):
        raise FinepruneError(
            f"batches: one is a {type(batch).__name__}; give mappings of the model's arguments, tuples or "
            "tensors"
        )
    parameters = inspect.signature(model.forward).parameters
    if not isinstance(batch, Mapping) and len(batch) <= len(parameters):
        places = [entry.kind for entry in parameters.values()][: len(batch)]
        if set(places) == {inspect.Parameter.POSITIONAL_OR_KEYWORD}:
            batch = dict(zip(parameters, batch, strict=False))  # by name, so that a mask is known as one
    if isinstance(batch, Mapping):
        batch = dict(batch)
        if "use_cache" in parameters:
            batch.setdefault("use_cache", False)
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)


def _count(calls: Counter[str], name: str, _value: Any) -> None:
    calls[name] += 1


def _owner(name: str, blocks: Iterable[str]) -> str:
    """Return the innermost block that a matrix is in; "" for none."""
    return max((block for block in blocks if name.startswith(f"{block}.")), key=len, default="")


def _floats(output: Any) -> list[Tensor]:
    return [tensor.float() for tensor in tensors_in(output) if tensor.is_floating_point()]


def _list_of(block: str) -> str:
    return block.rpartition(".")[0]


def _weightless(output: Any) -> Any:
    """Return the same structure with zeros of the same shapes, one number in memory each."""
    return tree_map_only(Tensor, lambda tensor: tensor.new_zeros(()).expand(tensor.shape), output)
