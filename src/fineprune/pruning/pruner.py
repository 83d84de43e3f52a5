"""What `prepare` returns: `Pruner.step` is called once per optimizer step, then `finalize`."""

import copy
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fineprune.errors import FinepruneError
from fineprune.pruning import pruning_state
from fineprune.pruning.adapters import hold_zeros
from fineprune.pruning.attachment import Attachment, forget, refuse_others
from fineprune.pruning.distributed import agreement, ranks
from fineprune.pruning.finalizing import MODULES
from fineprune.pruning.loop_checks import LoopWatch, naming_float16, refuse_layouts, refuse_missing
from fineprune.pruning.masked_weight import density_of
from fineprune.pruning.methods.base import Control, Method
from fineprune.pruning.methods.measured import Losses, Measured
from fineprune.pruning.progress import PROGRESS, Progress
from fineprune.pruning.score_groups import refuse_decay, score_group, take_scores_out, weight_groups
from fineprune.pruning.score_rules import Observed
from fineprune.pruning.target import Target, left_of


class Pruner:
    """The masks, scores and penalty of a prepared model; `prepare` returns it."""

    def __init__(
        self, model: nn.Module, method: Method, targets: list[Target], outer: Sequence[Target] = ()
    ) -> None:
        self.model = model
        self.config = method.config
        self.schedule = method.schedule
        self.targets = targets
        self.outer = outer
        self._progress = Progress(self.config, self.schedule)
        setattr(model, PROGRESS, self._progress)
        self._method = method
        self._dtypes = [target.weight.dtype for target in self.scored]
        self._agreed = False
        self._attachment = Attachment()
        self._changed: Tensor | float = 0.0
        self._control = Control()
        self._refresh()
        learns = self.config.traits.learns_scores
        self._watch = LoopWatch(self.config, self.score_lr if learns else None)
        if not self.config.traits.holds_zeros:
            self._watch.begin(targets)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pruner":
        """Copy the pruner with its model; the copy counts its own steps, and is attached to no optimizer."""
        copied = Pruner.__new__(Pruner)
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        copied._progress = copy.copy(self._progress)
        setattr(copied.model, PROGRESS, copied._progress)
        return copied

    @property
    def scored(self) -> list[Target]:
        """All that is ranked: units of the outer level, where there is one, and the targets."""
        return [*self.outer, *self.targets]

    @property
    def steps_done(self) -> int:
        """The number of optimizer steps that `step` has counted."""
        return self._progress.steps_done

    @steps_done.setter
    def steps_done(self, steps: int) -> None:
        self._progress.steps_done = steps

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return groups for an optimizer: weights, biases and norms without decay, and scores.

        The scores have their own rate (`score_lr`) and no decay. Frozen parameters are left out.

        Raises:
            FinepruneError: Scores have an optimizer of their own, or the method reads gradients before each
                step or changes steps, so an optimizer of these groups would not suffice. Use `optimizer` or
                `attach`. Or the method allows no weight decay.
        """
        instead = (
            "make it by pruner.optimizer(torch.optim.AdamW, lr=...), or give one to pruner.attach(optimizer)"
        )
        if self.config.score_optimizer != "adam":
            raise FinepruneError(
                f"score_optimizer={self.config.score_optimizer!r}: an optimizer of these groups would move "
                f"scores as it moves weights; {instead}"
            )
        if self._rule is not None:
            raise FinepruneError(
                f"method={self.config.method!r}: it reads the gradients before each step, which an optimizer "
                "of these "
                f"groups would not show it; {instead}"
            )
        if self._method.bundle.attach is not None:
            raise FinepruneError(
                f"method={self.config.method!r}: it changes the steps of the optimizer, which these groups "
                f"do not reach; {instead}"
            )
        return self._groups(lr, weight_decay)

    def optimizer(
        self, kind: type[torch.optim.Optimizer], lr: float, weight_decay: float = 0.0, **settings: Any
    ) -> torch.optim.Optimizer:
        """Return an optimizer of class `kind` over the parameter groups, with the scores attached.

        Args:
            kind: An optimizer class of torch.
            lr: The rate of the weights.
            weight_decay: The decay of the matrices; biases, norms and scores have none.
            settings: Further arguments of `kind`.
        """
        optimizer = kind(self._groups(lr, weight_decay), lr=lr, **settings)  # type: ignore[call-arg]
        self.attach(optimizer)
        return optimizer

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Make an existing optimizer update the scores as the config says, in place.

        The scores move from its groups to a group of their own, at `score_lr` without decay. A method that
        reads gradients gets them before each step. Attaching an optimizer again changes nothing. Of several
        optimizers the one that has all pruned weights that are trained is attached, and no other.

        Raises:
            FinepruneError: The optimizer has stepped already or has a scheduler, another one is attached, or
                weights are missing in it, or the method does not go with its class or its weight decay.
        """
        if self._attachment.is_to(optimizer):
            return
        self._hold_zeros()
        bundle = self._method.bundle
        hooked = self._rule is not None or bundle.attach is not None
        if hooked or self.config.traits.learns_scores:
            self._attachment.refuse_another(self.config.method)
            refuse_others(optimizer, self.targets, self.config.method)
        if not bundle.weight_decay:
            refuse_decay(optimizer.param_groups, self.targets, self.config.method)
        take_scores_out(optimizer, self.scored, score_group(self.scored, self.config, self.score_lr))
        if bundle.attach is not None:
            bundle.attach(optimizer, self.targets)
        if (rule := self._rule) is not None:
            observe = self._attachment.observe
            optimizer.register_step_pre_hook(
                lambda stepped, *_: observe(rule, self.scored, self.steps_done + 1, stepped)
            )
        self._attachment.begin(optimizer, hooked)

    def measure_on(self, losses: Losses) -> None:
        """Say on which batches a method measures before each cut; `PruningTrainer` does so by itself.

        Args:
            losses: A function that returns an iterator over the losses of batches, such as `lambda:
                (model(**batch).loss for batch in batches)`. It is called again for another pass, which must
                see the same batches. The model is in evaluation mode meanwhile. As many are taken as
                the options of the method say; with several processes each gives a share.

        Raises:
            FinepruneError: The method measures nothing, or `losses` is no function.
        """
        if self._measured is None:
            raise FinepruneError(f"method={self.config.method!r}: it measures nothing; leave measure_on out")
        if not callable(losses):
            raise FinepruneError(
                f"measure_on: {type(losses).__name__} is no function; give one that makes the losses anew, "
                "such as lambda: (model(**batch).loss for batch in batches)"
            )
        self._measured.bind(self.model, losses)

    @property
    def measures(self) -> bool:
        """Whether the method measures before each cut, on what `measure_on` gave it."""
        return self._measured is not None

    @property
    def _measured(self) -> Measured | None:
        rule = self._method.bundle.rule
        return rule if isinstance(rule, Measured) else None

    @property
    def _rule(self) -> Observed | None:
        """The score rule that reads gradients; None if the method has none."""
        rule = self._method.bundle.rule
        return rule if isinstance(rule, Observed) else None

    def _hold_zeros(self) -> None:
        """Mask the adapters that came after `prepare`, and before `fully_shard`."""
        if self.config.traits.holds_zeros and not any(ranks.is_sharded(t.weight) for t in self.targets):
            hold_zeros(self.model)

    def _groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        self._hold_zeros()
        weights = weight_groups(self.model.parameters(), self.scored, lr, weight_decay)
        if not self._method.bundle.weight_decay:
            refuse_decay(weights, self.targets, self.config.method)
        return weights + score_group(self.scored, self.config, self.score_lr)

    @property
    def score_lr(self) -> float | None:
        """The learning rate of the scores; None where the method learns none."""
        return self.config.score_lr or self.config.traits.score_lr

    def penalty(self) -> Tensor:
        """Return the scalar to add to the loss: lambda * R(S); 0 for methods without a penalty."""
        self._refuse_finalized()
        value = self._method.penalty(self.targets, self._control, self.outer)
        if value is not None and self._watch.penalty is not None:
            self._watch.penalty.watch(value)
        return torch.zeros((), device=self.targets[0].weight.device) if value is None else value

    def step(self) -> None:
        """Count one optimizer step and set the masks of the next forward pass.

        With several processes, all of them must call it, as all call `prepare`.

        Raises:
            FinepruneError: The model was cast to another type since `prepare`, its method did not get the
                gradients that it needs, or the processes differ in what they must share.
        """
        self._refuse_finalized()
        ranks.reshard(self.model)
        self._refuse_cast()
        if not self._agreed:
            self._agree()
        self.steps_done += 1
        self._watch.steps += 1
        attached = self._attachment.made
        refuse_missing(
            self.config.method,
            optimizer=self._rule is not None and not attached,
            gradients=self._rule is not None and self._attachment.waited(),
            steps=self._method.bundle.attach is not None and not attached,
            losses=self._measured is not None and self._measured.losses is None,
        )
        if self._rule is not None:
            forget(self.scored)  # of a step that a loss scaler skipped: they may be infinite
        boundaries = (self.schedule.total - self.schedule.cooldown, self.schedule.total)
        due = self.steps_done % self.config.mask_interval == 0 or self.steps_done in boundaries
        at_end = self.config.fix_masks or self.measures  # a measurement costs much, and what is cut stays cut
        fixed = self.config.traits.holds_zeros or (at_end and self.steps_done > boundaries[0])
        if due and not fixed:
            self._refresh()
        self._watch.needs_penalty = self._control.pushes

    def report(self) -> None:
        """Warn, once, if the density is not the one that the training was planned to end at.

        `finalize` does so; call it where a training ends and the model stays prepared.
        """
        self._progress.report(self.density)

    def _refuse_finalized(self) -> None:
        if PROGRESS not in vars(self.model):
            raise FinepruneError(
                "this pruner's model is finalized: its masks are folded in; prepare it to prune it further"
            )

    def _refuse_cast(self) -> None:
        for target, before in zip(self.scored, self._dtypes, strict=True):
            scores, now = target.masked.scores, target.weight.dtype
            # FSDP of half-precision weights may make float32 of them, which loses nothing.
            if now not in (before, torch.float32) or (scores is not None and scores.dtype != torch.float32):
                raise FinepruneError(
                    f"{target.name}: the model was cast to {now} after prepare, and what ranks its weights "
                    "with it; cast before prepare (scores stay float32), or train with autocast"
                )

    def _agree(self) -> None:
        """Check before the first step that the processes agree and the layout of matrices is supported."""
        self._agreed = True
        matrices = [(target.name, tuple(target.weight.shape)) for target in self.targets]
        facts = {"matrices": matrices, "total_steps": self.schedule.total, "steps_done": self.steps_done}
        agreement.agree(self.config.to_dict() | facts, "pruning")
        refuse_layouts(self.scored, self.config.method if self.measures else None)
        self.check_masks()  # those of `keep_zeros` come from the weights, which each process loads by itself

    @torch.no_grad()
    def check_masks(self) -> None:
        """Raise `FinepruneError`, on all processes, if their masks, threshold or lambda differ.

        All processes must call it. Call it every N steps in your own loop; `PruningTrainer(check_masks=N)`
        does so by itself. It reads the masks once and compares one number per matrix. With one process it
        does nothing.
        """
        if not agreement.several():
            return
        ranks.reshard(self.model)
        matrices = [agreement.fingerprint(target.masked.kept()) for target in self.targets]
        control = (self._control, self.steps_done)
        differing = agreement.unlike([*matrices, zlib.crc32(repr(control).encode())])
        if differing:
            names = [*(target.name for target in self.targets), "threshold and lambda"]
            raise FinepruneError(
                f"step {self.steps_done}: the processes have different masks, first of "
                f"{names[differing[0]]} ({len(differing)} differ in all); go on from the last checkpoint, "
                "and look for what they do not share: versions, devices, or steps that only some took"
            )

    @torch.no_grad()
    def _refresh(self) -> None:
        masks = [target.masked.mask for target in self.scored]
        before = [mask.clone() for mask in masks]
        with naming_float16(target.weight for target in self.targets):
            self._control = self._method.refresh(self.targets, self.steps_done, self.outer)
        device = masks[0].device  # the sum stays on the device, so that the next step need not wait for it
        flipped = [torch.count_nonzero(old ^ new).to(device) for old, new in zip(before, masks, strict=True)]
        self._changed = torch.stack(flipped).sum()

    @property
    def changed(self) -> float:
        """The share of the target weights whose mask the last refresh changed."""
        if isinstance(self._changed, Tensor):  # a count
            self._changed = int(self._changed) / sum(target.masked.mask.numel() for target in self.scored)
        return self._changed

    @property
    def density(self) -> float:
        """The share of the target weights that the current masks keep."""
        ranks.reshard(self.model)
        return density_of(target.masked for target in self.targets)

    @property
    def left(self) -> dict[str, Any]:
        """What the current masks keep: shares of weights and multiply-adds, and units as (left, of).

        Multiply-adds are those of the pruned matrices and, where heads are pruned, of their attention
        product, for a text of `budget_length` tokens. With `budget="latency"` there is the planned share of
        the dense model's time, too.
        """
        ranks.reshard(self.model)
        return left_of(self.outer, self.targets)

    @property
    def at_final_density(self) -> bool:
        """Whether the schedule has reached its final density, so that states may be compared and kept."""
        return self.schedule.at_final(self.steps_done)

    @property
    def has_penalty(self) -> bool:
        """Whether the method, with its settings, adds a penalty to the loss."""
        return self._method.bundle.penalty is not None

    @property
    def threshold(self) -> float | None:
        """The score at which the last refresh cut (local scope: the mean over matrices); None before any."""
        return self._control.threshold

    @property
    def lambda_(self) -> float:
        """The factor of the penalty for the next step."""
        return self._control.lambda_

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs in addition to the state of the model, as plain values."""
        outer = self._control.outer
        return {
            "config": self.config.to_dict(),
            "total_steps": self.schedule.total,
            "steps_done": self.steps_done,
            "threshold": self._control.threshold,
            "lambda": self._control.lambda_,
            "changed": self.changed,
            **({} if outer is None else {"outer": [outer.threshold, outer.lambda_]}),
        } | ({} if self._method.bundle.state is None else {"method": self._method.bundle.state.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; load the state of the model, with scores and masks, separately.

        Raises:
            FinepruneError: The state is of another config or length.
        """
        saved = pruning_state.SavedState.read(state)
        saved.check(self.config, self.schedule.total)
        self.steps_done = saved.steps_done
        outer = None if saved.outer is None else Control(*saved.outer)
        self._control = Control(saved.threshold, saved.lambda_, outer)
        self._changed = saved.changed
        if self._method.bundle.state is not None:
            self._method.bundle.state.load_state_dict(saved.method)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that `finalize` drops or hides, for a checkpoint with folded weights.

        These are, by target: scores, masks, gates, statistics, and the weights under the mask; on the CPU.
        """
        pruning_state.refuse_sharded(self.targets)
        return pruning_state.tensors(self.targets, getattr(self.model, MODULES, None), self.outer)

    def load_tensors(self, saved: dict[str, Tensor]) -> None:
        """Load the result of `tensors`; load the folded weights first.

        Raises:
            FinepruneError: Names, shapes or types are not those of this run, or the model is finalized.
        """
        self._refuse_finalized()
        pruning_state.refuse_sharded(self.targets)
        pruning_state.load_tensors(self.targets, getattr(self.model, MODULES, None), saved, self.outer)
