"""The rows on which a method measures before a cut."""

from types import SimpleNamespace

import pytest
import torch

from fineprune import FinepruneError, PruningConfig
from fineprune.training.host.measuring import check_rows, task_losses

OBERT = PruningConfig("obert", density=0.2, options={"block": 4, "gradients": 3})


def test_a_run_ends_at_its_density_and_measures_the_task_alone(make_trainer, make_model, teacher):
    trainer = make_trainer(OBERT, given={"teacher": teacher})
    trainer.train()
    assert trainer.pruner.density == pytest.approx(0.2, abs=0.001)
    trainer.model.eval()
    found = [float(loss.detach()) for loss in task_losses(trainer, 5)]
    assert found == [float(loss.detach()) for loss in task_losses(trainer, 5)]
    assert found != [float(loss.detach()) for loss in task_losses(trainer, 6)]
    assert len(found) == 6  # 48 rows by 8
    rows = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        assert sum(found) / 6 == pytest.approx(float(trainer.model(**rows).loss), rel=1e-5)


def test_processes_share_the_rows(make_trainer):
    trainer = make_trainer(OBERT)
    trainer.model.eval()
    every = [float(loss.detach()) for loss in task_losses(trainer, 5)]
    seen = []
    for process in range(2):
        args = SimpleNamespace(seed=trainer.args.seed, process_index=process, world_size=2)
        host = SimpleNamespace(
            args=args,
            model=trainer.model,
            train_dataset=trainer.train_dataset,
            data_collator=trainer.data_collator,
            _remove_unused_columns=trainer._remove_unused_columns,
            _prepare_inputs=trainer._prepare_inputs,
            compute_loss=trainer.compute_loss,
        )
        seen.append([float(loss.detach()) for loss in task_losses(host, 5)])
    assert seen == [every[::2], every[1::2]]


def test_a_stream_of_rows_is_refused():
    with pytest.raises(FinepruneError, match="the training data have no length, and this method measures"):
        check_rows(SimpleNamespace(train_dataset=iter([])))
