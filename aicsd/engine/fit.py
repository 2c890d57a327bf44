"""The training loop, for every method."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, NamedTuple

from lightning_fabric import Fabric

from aicsd.data.batches import TrainBatches
from aicsd.data.loaders import Waiting
from aicsd.data.protocol import SegDataset
from aicsd.distiller import Distiller
from aicsd.engine.kept_step import kept
from aicsd.engine.peers import any_process
from aicsd.engine.record import RunRecord
from aicsd.engine.reporting import Meter
from aicsd.engine.run_batches import RunBatches
from aicsd.engine.step import StepResult, Training, train_step
from aicsd.engine.stop import Interrupted, stop_signal
from aicsd.engine.watchers import Watched, watchers_of
from aicsd.models import Segmenter
from aicsd.run_config import FitConfig


def fit(
    config: FitConfig,
    distiller: Distiller,
    train_data: SegDataset,
    val_data: SegDataset,
    plan: TrainBatches,
    fabric: Fabric,
) -> tuple[dict[str, Any], Segmenter]:
    """Train ``distiller.student`` and leave a complete run folder behind.

    Args:
        config: settings of the run.
        distiller: student, terms and teacher; left on the device of ``fabric``.
        train_data: source of the batches.
        val_data: images and labels for the student's metrics.
        plan: the batches of the whole run, for this process.
        fabric: launched.

    Returns:
        What ``metrics.json`` holds, the metrics of the final student on ``val_data`` and, under
        ``teacher``, those of the teacher; and the final student.

    Raises:
        UserError: a broken file, a loss that is no longer finite.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with the checkpoint written.
    """
    total = plan.stop // config.optimizer.accumulate
    training = Training(config.optimizer.in_steps(total), config.seed, distiller, fabric)
    run = RunRecord(config, training, val_data)
    state = run.state
    finished = run.finished(total)
    if finished is not None:
        return finished, training.final

    source = RunBatches(config, train_data, plan, fabric, distiller.student.input.color)
    if config.cuda_graphs:
        training.record(config.data.batch_size, config.data.augment.crop)
    batches = Waiting(source.load(state.step))
    with run.logger(total) as logger, stop_signal() as stop:
        watched = Watched(
            run.folder, training, state, val_data, logger, run.evaluate, asdict(config), total
        )
        watchers = watchers_of(distiller)
        for watcher in watchers:
            watcher.on_start(watched)
        meter = Meter(distiller.recipe)
        started = time.monotonic() - state.seconds

        def log(result: StepResult, progress: float, epoch: int) -> None:
            with kept(run.folder, training, source):
                training.finite.require()
            line = meter.line(result.losses, progress, result.lr)
            logger.scalars(state.step, {"epoch": epoch, **line, **run.skipped})

        while state.step < total:
            progress = state.step / total
            with kept(run.folder, training, source):
                result = train_step(training, batches, state.step, progress)
            meter.count(result.images * fabric.world_size, batches.take_seconds())
            step = state.step = state.step + 1
            state.seconds = time.monotonic() - started
            state.skipped = training.finite.skipped
            due = due_after(step, total, config, plan.per_epoch)
            # between these steps, a GPU is not waited for
            waits = fabric.device.type == "cpu" or step % config.log_every == 0 or step == total
            loss = result.losses["loss"].item() if waits else None
            logger.advance(step, f"epoch {due.begun}/{config.epochs}", loss)
            stopped = waits and any_process(bool(stop), fabric)
            logged = due.log or stopped
            if logged:
                log(result, progress, due.epoch)
            if due.validation:
                run.validate(logger)
                for watcher in watchers:
                    watcher.on_validation(watched)
            if fabric.world_size == 1 or due.validation:  # or since the check above
                stopped = stopped or any_process(bool(stop), fabric)
            if stopped and not logged:
                log(result, progress, due.epoch)
            if due.checkpoint or stopped:
                run.save()
            if stopped and step < total:
                fabric.barrier()  # a process that ends sooner would end the one that saves
                raise Interrupted(f"stopped at step {step} of {total}; continue with --resume")
        metrics = run.validate(logger)
        for watcher in watchers:
            watcher.on_validation(watched)
    return run.finish(metrics), training.final


class Due(NamedTuple):
    """Work that is due after a step."""

    epoch: int
    """Epochs done."""
    begun: int
    """Epochs begun."""
    log: bool
    checkpoint: bool
    validation: bool
    """Whether to validate before the last step; after that it is done in any case."""


def due_after(step: int, total: int, config: FitConfig, per_epoch: int) -> Due:
    """Work due after step ``step``, from 1, of ``total``; ``per_epoch`` batches make an epoch."""
    batches = step * config.optimizer.accumulate
    epoch = batches // per_epoch
    before = (batches - config.optimizer.accumulate) // per_epoch
    every = config.val_every or config.epochs + 1  # a step may end several epochs
    checkpoint = step % config.save_every == 0 or step == total
    return Due(
        epoch,
        begun=-(-batches // per_epoch),
        log=checkpoint or step % config.log_every == 0,
        checkpoint=checkpoint,
        validation=step < total and epoch // every > before // every,
    )
