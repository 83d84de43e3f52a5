"""Checkpoints around the host's own: written whole or not at all, verified and compared when resumed."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer import OPTIMIZER_NAME
from transformers.trainer_utils import rotate_checkpoints

from fineprune._files import follow_umask
from fineprune.errors import FinepruneError
from fineprune.pruning.distributed import agreement
from fineprune.pruning.progress import warn_first
from fineprune.training.host import processes, sealing
from fineprune.training.host.data_fingerprint import fingerprint
from fineprune.training.host.part import Part
from fineprune.training.host.weights import Weights


class Checkpoints:
    """The seal of a host's checkpoints, and the sums behind its next line of the log."""

    def __init__(self, host: Any, weights: Weights, parts: Sequence[Part], data: Mapping[str, Any]) -> None:
        """Take the host's parts, and its data sets by name, as they were given to it."""
        self._host, self._weights, self._parts = host, weights, parts
        self._sums: dict[str, Any] = {}
        self._optimizer: tuple[Any, str | None] = (None, None)  # a checkpoint, and what it was written by
        self._rows = data
        self._known: dict[str, Any] | None = None
        self.staging: Path | None = None
        """The folder that a checkpoint is written to before it gets its name; None at other times."""

    @contextmanager
    def sealed(self, place: Path) -> Iterator[None]:
        """Let the host save a checkpoint in the block, beside its place; then seal and rename it.

        A kill leaves no half of one, and where it cannot be written all processes stop.

        Args:
            place: the folder of the checkpoints.
        """
        host, state = self._host, self._host.state
        name = f"checkpoint-{state.global_step}"
        limit, best = host.args.save_total_limit, state.best_global_step
        run = processes.written_by(host) | {"sums": self._logged_so_far(), "data": self._data()}
        run["optimizer"] = _kind_of(host.optimizer)
        try:
            # With a best step, the host would wait for all processes in the middle of the save, even for one
            # that cannot write.
            host.args.save_total_limit = state.best_global_step = None
            self.staging = place / ".writing"
            if host.args.should_save:
                shutil.rmtree(self.staging, ignore_errors=True)
            host.accelerator.wait_for_everyone()  # before another process writes there
            with agreement.together(name), sealing.writing(place / name, place):
                yield
            state.best_global_step = best
            if best and (best == state.global_step or (place / f"checkpoint-{best}").exists()):
                state.best_model_checkpoint = str(place / f"checkpoint-{best}")
            with agreement.together(name), sealing.writing(place / name, place):
                if host.args.should_save:  # each has written its part
                    self._weights.save_rest(self.staging / name)
                    state.save_to_json(str(self.staging / name / "trainer_state.json"))
                    sealing.seal(self.staging / name, self._weights.state(), run)
                    follow_umask(self.staging / name)
                    shutil.rmtree(place / name, ignore_errors=True)
                    os.replace(self.staging / name, place / name)
                    # By number, not by mtime: a coarse clock gives several the same.
                    rotate_checkpoints(str(place), limit, state.best_model_checkpoint)
        finally:
            if host.args.should_save:
                shutil.rmtree(place / ".writing", ignore_errors=True)  # makes room on a full disk
            host.args.save_total_limit, state.best_global_step = limit, best
            self.staging = None

    def open(self, folder: Path) -> None:
        """Verify a checkpoint, compare its run with this one, and take its plain values.

        Raises:
            FinepruneError: It is broken, or of a run that this one cannot continue.
        """
        state = sealing.verify(folder)
        now = self._weights.state()
        if (state is None) != (now is None):
            kinds = ["dense" if one is None else "pruning" for one in (state, now)]
            raise FinepruneError(
                f"{folder}: a {kinds[0]} run's checkpoint; this run is "
                f"{'dense' if now is None else 'a pruning run'}"
            )
        run = sealing.run_of(folder)
        changed = processes.check_resumed(str(folder), run, processes.written_by(self._host))
        if changed is not None:
            warn_first(changed)
        self._check_parts(folder, run)
        self._sums, self._optimizer = run.get("sums") or {}, (folder, run.get("optimizer"))
        if state is not None:
            self._weights.load_state(state)

    def _check_parts(self, folder: Path, run: Mapping[str, Any]) -> None:
        """Raise `FinepruneError` for a checkpoint without an optimizer, or of a run on other data."""
        host, data = self._host, run.get("data")
        engine = host.is_fsdp_enabled or host.is_deepspeed_enabled  # which has names of its own
        if not engine and not (folder / OPTIMIZER_NAME).is_file():
            raise FinepruneError(
                f"{folder}: has no {OPTIMIZER_NAME} (save_only_model?), so no run can go on from it; start a "
                "new one from its model"
            )
        if data is None:
            return
        now = self._data()
        processes.check_data(str(folder), data["training"], now["training"], "training")
        try:
            processes.check_data(str(folder), data["validation"], now["validation"], "validation")
        except FinepruneError as error:  # scores before and after cannot be compared, no more than that
            warn_first(str(error))

    def check_optimizer(self, optimizer: Any) -> None:
        """Raise `FinepruneError` if the checkpoint that was opened has the state of another optimizer."""
        folder, kind = self._optimizer
        if kind is not None and kind != _kind_of(optimizer):
            raise FinepruneError(
                f"{folder}: has the state of {kind}, this run's optimizer is {_kind_of(optimizer)}; set "
                "optim as the run began, or start a new run from its model"
            )

    def _data(self) -> dict[str, Any]:
        """Return the fingerprints of the data, read once."""
        if self._known is None:
            self._known = {name: fingerprint(rows) for name, rows in self._rows.items()}
        return self._known

    def go_on_summing(self) -> None:
        """Give the host, which has set its sums to zero, those of the checkpoint that was opened."""
        host, sums, self._sums = self._host, self._sums, {}
        if not sums:
            return
        before = float(sums["loss"])
        host._tr_loss += before
        host._total_loss_scalar -= before  # of steps before this call of train()
        host._globalstep_last_logged = sums["logged"]
        for part in self._parts:
            part.go_on(sums)

    def _logged_so_far(self) -> dict[str, Any]:
        """Return the sums behind the next log line; a call of all processes. JSON has no nan, hence text."""
        host = self._host
        sums: dict[str, Any] = {
            "loss": repr(float(host.accelerator.gather(host._tr_loss).mean())),
            "logged": host._globalstep_last_logged,
        }
        for part in self._parts:
            sums |= part.sums()
        return sums


def _kind_of(optimizer: Any) -> str:
    """Return the class of an optimizer, inside the wrappers of engines."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return type(inner).__name__
