"""The training loop, for every method."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aicsd.data.base import SegDataset, UInt8Array
from aicsd.data.loaders import epoch_indices, plan_batches, timed, train_loader
from aicsd.distiller import Distiller
from aicsd.engine.checkpoint import Progress, load_checkpoint, save_checkpoint
from aicsd.engine.config import FitConfig
from aicsd.engine.optimizer import build_optimizer, set_learning_rate
from aicsd.engine.reporting import Meter, RunLogger
from aicsd.engine.stop import Interrupted, stop_signal
from aicsd.engine.trackers import check_loggers, open_trackers
from aicsd.errors import UserError
from aicsd.evaluation import Metrics, evaluate, to_json
from aicsd.files import write_text
from aicsd.models import Segmenter, save_model
from aicsd.runs import RunFolder
from aicsd.types import Batch
from aicsd.visualization.ics_history import (
    HISTORY_IMAGES,
    ICSHistory,
    read_history,
    write_history,
)
from aicsd.visualization.matrices import matrix_sheet
from aicsd.visualization.panels import contact_sheet
from aicsd.visualization.views import ics_distance, look, spread

LOGGED_IMAGES = 3
ICS_DISTANCE = "val/ics_distance"


def fit(
    config: FitConfig,
    distiller: Distiller,
    train_data: SegDataset,
    val_data: SegDataset,
    fabric: Fabric,
) -> dict[str, Any]:
    """Train ``distiller.student`` and leave a complete run folder behind.

    Returns:
        What ``metrics.json`` holds: the metrics of the final student on ``val_data`` and, under
        ``teacher``, those of the teacher.

    Raises:
        UserError: too few images, a broken file, a loss that is no longer finite.
        Interrupted: after SIGINT or SIGTERM, with the checkpoint written.
    """
    accumulate = config.optimizer.accumulate
    plan = plan_batches(
        len(epoch_indices(train_data, config.data)), config.data, config.seed, config.epochs,
        accumulate, fabric.global_rank, fabric.world_size,
    )  # fmt: skip
    loop = _Loop(config, distiller, val_data, fabric, total=plan.stop // accumulate)
    if loop.is_finished():
        return loop.read_result()
    batches = timed(
        train_loader(
            train_data, config.data, replace(plan, start=loop.progress.step * accumulate),
            pin_memory=fabric.device.type == "cuda", protocol=config.protocol,
            color=distiller.student.input.color,
        )
    )  # fmt: skip
    with loop.logger(fabric.is_global_zero) as logger, stop_signal() as stop:
        loop.measure_teacher(logger)
        if loop.progress.step == 0:
            loop.look_at_ics(logger)
        meter = Meter(distiller.recipe)
        started = time.monotonic() - loop.progress.seconds
        while loop.progress.step < loop.total:
            part_done = loop.progress.step / loop.total
            losses, rate = loop.step(batches, meter)
            step = loop.progress.step = loop.progress.step + 1
            loop.progress.seconds = time.monotonic() - started
            epoch = step * accumulate // plan.per_epoch
            ends_epoch = epoch > (step - 1) * accumulate // plan.per_epoch
            saves = step % config.save_every == 0 or step == loop.total or bool(stop)
            logs = saves or step % config.log_every == 0
            if logs:
                logger.scalars(step, {"epoch": epoch, **meter.line(losses, part_done, rate)})
                logger.advance(step, f"epoch {epoch} loss {losses['loss'].item():.3f}")
            due = config.val_every and ends_epoch and epoch % config.val_every == 0
            if due and step < loop.total:
                loop.validate(logger)
            stopped = bool(stop)  # perhaps since the line above: during the validation
            if stopped and not logs:
                logger.scalars(step, {"epoch": epoch, **meter.line(losses, part_done, rate)})
            if saves or stopped:
                loop.save()
            if stopped and step < loop.total:
                raise Interrupted(f"stopped at step {step} of {loop.total}")
        metrics = loop.validate(logger)
    return loop.finish(metrics)


class _Loop:
    """The state of one run, and what can be done to it."""

    def __init__(
        self,
        config: FitConfig,
        distiller: Distiller,
        val_data: SegDataset,
        fabric: Fabric,
        total: int,
    ) -> None:
        self.config, self.val_data, self.fabric, self.total = config, val_data, fabric, total
        self.run = Path(config.run)
        self.folder = RunFolder(self.run)
        self.distiller = distiller
        if distiller.teacher is not None:
            distiller.teacher.to(fabric.device)
        distiller.student.to(memory_format=torch.channels_last)  # the layout of the images
        optimizer = build_optimizer(config.optimizer, distiller)
        self.model: Any
        self.optimizer: Any
        self.model, self.optimizer = fabric.setup(distiller, optimizer)
        self.average = _average(distiller.student, config.optimizer.ema)
        self.progress = Progress()
        self._restore()

    @property
    def final(self) -> Segmenter:
        """The network that gets evaluated and saved."""
        if self.average is None:
            return self.distiller.student
        assert isinstance(self.average.module, Segmenter)
        return self.average.module

    def step(
        self, batches: Iterator[tuple[Batch, float]], meter: Meter
    ) -> tuple[dict[str, Tensor], float]:
        """One optimizer step; the losses of its last batch and the learning rate."""
        settings, done = self.config.optimizer, self.progress.step / self.total
        self.model.train()
        rate = set_learning_rate(self.optimizer, settings, done)
        torch.manual_seed(_step_seed(self.config.seed, self.progress.step, self.fabric.global_rank))
        for part in range(settings.accumulate):
            batch, waited = next(batches)
            unfinished = part < settings.accumulate - 1
            with self.fabric.no_backward_sync(self.model, enabled=unfinished):
                losses: dict[str, Tensor] = self.model(batch.to(self.fabric.device), done)
                self.fabric.backward(losses["loss"] / settings.accumulate)
            meter.count(len(batch.image) * self.fabric.world_size, waited)
        if settings.clip:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.distiller.student)
        return {name: value.detach() for name, value in losses.items()}, rate

    def validate(self, logger: RunLogger) -> Metrics:
        """Metrics on the validation split, logged; the best model so far is kept."""
        logger.advance(self.progress.step, "validating")
        self._share_statistics()
        metrics = self._evaluate(self.final)
        values = {key: value for key, value in metrics.to_dict().items() if key != "images"}
        per_class = values.pop("per_class_iou")
        for key in ("per_class_accuracy", "confusion"):
            values.pop(key)
        logger.scalars(
            self.progress.step,
            {f"val/{key}": value for key, value in values.items()}
            | {f"val_iou/{name}": value for name, value in per_class.items()},
        )
        self.look_at_ics(logger)
        if len(self.val_data):
            logger.picture(self.progress.step, "val/pictures", self._draw)
        logger.say(f"step {self.progress.step}: val mIoU {metrics.miou:.4f}")
        if metrics.miou > self.progress.best_miou:
            self.progress.best_miou = metrics.miou
            self._save_model(metrics, self.folder.best)
        return metrics

    def _draw(self) -> UInt8Array:
        """Image, labels and prediction of a few images of the validation split."""
        samples = [self.val_data.read(index) for index in spread(self.val_data, LOGGED_IMAGES)]
        return contact_sheet(self.final, samples, self.val_data.classes)

    def look_at_ics(self, logger: RunLogger) -> None:
        """Keep the ICS matrix on a few validation images, and log how far the teacher is."""
        if not (self.fabric.is_global_zero and len(self.val_data)):
            return
        indices = spread(self.val_data, HISTORY_IMAGES)
        samples = [self.val_data.read(index) for index in indices]
        step, teacher = self.progress.step, self.distiller.teacher
        history = read_history(self.run) or ICSHistory([self.val_data.names[i] for i in indices])
        # those of later steps are left by a cut run
        history.steps = {at: matrix for at, matrix in history.steps.items() if at < step}
        history.steps[step] = look(self.final, samples).ics
        if teacher is not None and history.teacher is None:
            history.teacher = look(teacher.model, samples).ics
        write_history(self.run, history)
        shown = [history.steps[step]]
        if history.teacher is not None:
            shown.insert(0, history.teacher)
            distance = ics_distance(history.steps[step], history.teacher)
            logger.scalars(step, {ICS_DISTANCE: distance})
        logger.picture(step, "val/ics", lambda: matrix_sheet(shown))

    def measure_teacher(self, logger: RunLogger) -> None:
        """A teacher that was loaded wrongly shows here, before it costs a training."""
        teacher = self.distiller.teacher
        if teacher is None or self.progress.teacher:
            return
        logger.advance(self.progress.step, "measuring the teacher")
        metrics = self._evaluate(teacher.model)
        self.progress.teacher = metrics.to_dict()
        logger.say(f"teacher val mIoU {metrics.miou:.4f}")

    def _evaluate(self, model: Segmenter) -> Metrics:
        data = self.config.data
        short_side = data.augment.crop if self.config.protocol == "released" else 0
        return evaluate(model, self.val_data, workers=data.workers, short_side=short_side)

    def logger(self, active: bool) -> RunLogger:
        config, start = self.config, self.progress.step
        names = check_loggers(config.logger)
        trackers = partial(open_trackers, names, self.run, start, asdict(config))
        return RunLogger(self.run, start, self.total, trackers, active)

    def save(self) -> None:
        """Write the checkpoint from which the run continues exactly."""
        if not self.fabric.is_global_zero:
            return
        states: dict[str, Any] = {
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # the scale of 16-mixed
        }
        if self.average is not None:
            states["average"] = self.average.state_dict()
        save_checkpoint(self.folder, self.progress, states)

    def finish(self, metrics: Metrics) -> dict[str, Any]:
        """Write the trained model and the result."""
        result = {
            **metrics.to_dict(),
            "seconds": round(self.progress.seconds, 1),
            "parameters": self.final.num_parameters(),
            "teacher": self.progress.teacher or None,
        }
        self.save()
        self._save_model(metrics, self.folder.model)
        if self.fabric.is_global_zero:
            write_text(self.folder.result, to_json(result), durable=True)
            self.folder.previous.unlink(missing_ok=True)
        self.fabric.barrier()
        return result

    def is_finished(self) -> bool:
        return self.progress.step == self.total and self.folder.result.is_file()

    def read_result(self) -> dict[str, Any]:
        """What :meth:`finish` returned."""
        return self.folder.read_result()

    def _share_statistics(self) -> None:
        # each process has batch-norm statistics of its own images; the first one's get saved
        if dist.is_initialized():
            for statistic in self.final.buffers():
                dist.broadcast(statistic, src=0)

    def _save_model(self, metrics: Metrics, path: Path) -> None:
        if self.fabric.is_global_zero:
            measured = metrics.to_dict()
            measured.pop("confusion")  # the header of a model file is no place for a matrix
            info = {"metrics": measured, "run": self.run.name}
            save_model(self.final, path, info)

    def _restore(self) -> None:
        found = load_checkpoint(self.folder)
        if found is None:
            return
        self.progress, states = found.progress, found.states
        if found.damage is not None and self.fabric.is_global_zero:
            print(f"{self.run.name}: {found.damage}", file=sys.stderr)
            # else it would take the place of the sound one at the next save
            self.folder.checkpoint.unlink(missing_ok=True)
        try:
            self.distiller.load_state_dict(states["distiller"])
            self.optimizer.load_state_dict(states["optimizer"])
            self.fabric.strategy.precision.load_state_dict(states["precision"])
            if self.average is not None:
                self.average.load_state_dict(states["average"])
        except Exception as error:  # of an older version, or of something else
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"checkpoint {self.folder.checkpoint} does not fit this model and data ({reason}); "
                "choose another run folder"
            ) from error


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Dropout depends on (seed, step, rank) only, hence not on where a run was cut."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _average(student: nn.Module, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(student, multi_avg_fn=update, use_buffers=True)
