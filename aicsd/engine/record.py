"""Record of a training: scores, models, checkpoints and the result."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import distributed

from aicsd.data.protocol import SegDataset
from aicsd.engine.checkpoint import RunState, load_checkpoint, save_checkpoint
from aicsd.engine.reporting import RunLogger, score_text
from aicsd.engine.step import Training
from aicsd.engine.trackers import open_trackers
from aicsd.errors import UserError, one_line
from aicsd.evaluation import ImageCounts, Metrics, evaluate, to_json
from aicsd.files import write_text
from aicsd.messages import say
from aicsd.models import Segmenter, save_model
from aicsd.models.model_file import read_model_file
from aicsd.run_config import FitConfig, logger_names
from aicsd.runs import RunFolder


class RunRecord:
    """The run folder of one training, and where the training stands.

    Args:
        config: settings of the run.
        training: continues from the checkpoint, if the folder has one.
        val_data: the validation split.
    """

    def __init__(self, config: FitConfig, training: Training, val_data: SegDataset) -> None:
        self.config, self.training, self.val_data = config, training, val_data
        self.folder = RunFolder(config.run)
        self.fabric = training.fabric
        self.state = RunState()
        self._said: set[str] = set()
        self._images = ImageCounts(val_data.names, len(val_data.classes.names))
        self._restore()

    def logger(self, total: int) -> RunLogger:
        """Progress bar, ``metrics.jsonl`` and trackers of this process."""
        config, start, path = self.config, self.state.step, self.folder.path
        names = logger_names(config.logger)
        trackers = partial(open_trackers, names, path, asdict(config))
        return RunLogger(path, start, total, trackers, self.fabric.is_global_zero)

    def evaluate(
        self, model: Segmenter, logger: RunLogger, what: str, per_image: ImageCounts | None = None
    ) -> Metrics:
        """Metrics of a network on the validation split.

        Args:
            model: in any mode.
            logger: shows how far it is.
            what: the words for it there.
            per_image: gets the counts of every image.
        """
        share = -(-len(self.val_data) // self.fabric.world_size)
        with logger.counting(what, share) as advance:
            return evaluate(
                model,
                self.val_data,
                workers=self.config.data.workers,
                short_side=self.config.val_short_side,
                per_image=per_image,
                advance=advance,
                cut=self._say_once,
            )

    def validate(self, logger: RunLogger) -> Metrics:
        """Metrics of the student, logged; the best student so far is kept."""
        if self.fabric.is_global_zero:
            self.folder.require_place()
        self._share_statistics()
        metrics = self.evaluate(self.training.final, logger, "validating", self._images)
        values = {key: value for key, value in metrics.to_dict().items() if key != "images"}
        per_class = values.pop("per_class_iou")
        for key in ("per_class_accuracy", "confusion"):
            values.pop(key)
        logger.scalars(
            self.state.step,
            {f"val/{key}": value for key, value in values.items()}
            | {f"val_iou/{name}": value for name, value in per_class.items()},
        )
        logger.say(f"step {self.state.step}: val mIoU {score_text(metrics.miou, why=True)}")
        if metrics.miou > self.state.best_miou:
            self.state.best_miou = metrics.miou
            self._save_model(metrics, self.folder.best)
        return metrics

    def save(self) -> None:
        """Write the checkpoint from which the run continues exactly."""
        if self.fabric.is_global_zero:
            self.folder.require_place()
            self._require_finite()
            save_checkpoint(self.folder, self.state, self.training.state_dict())

    @property
    def skipped(self) -> dict[str, int]:
        """Steps that were skipped so far, for the log, where the run may skip any."""
        return {"skipped": self.state.skipped} if self.config.optimizer.skip_nonfinite else {}

    def finish(self, metrics: Metrics) -> dict[str, Any]:
        """Write the trained model, the counts of its validation images and the result."""
        result = {
            **metrics.to_dict(),
            "seconds": round(self.state.seconds, 1),
            "parameters": self.training.final.num_parameters(),
            "teacher": self.state.teacher or None,
        }
        if labels_by := getattr(self.val_data, "labels_by", None):
            result["labels"] = labels_by
        result |= {f"{name}_steps": count for name, count in self.skipped.items()}
        self.save()
        self._save_model(metrics, self.folder.model)
        if self.fabric.is_global_zero:
            self._images.save(self.folder.image_counts)
            write_text(self.folder.result, to_json(result), durable=True)
            for path in (self.folder.previous, self.folder.nonfinite):
                path.unlink(missing_ok=True)
        self.fabric.barrier()
        return result

    def finished(self, total: int) -> dict[str, Any] | None:
        """Content of ``metrics.json``, if the run is complete.

        A finished run whose checkpoints were deleted gets its network from the model file.

        Args:
            total: steps of the whole run.

        Raises:
            UserError: a damaged result, and no checkpoint to make it again from.
        """
        has_checkpoint = self.state.step > 0
        if not self.folder.result.is_file() or (has_checkpoint and self.state.step < total):
            return None
        try:
            result = self.folder.read_result()
            weights = read_model_file(self.folder.model)[1]
        except UserError as error:
            if not has_checkpoint:
                raise UserError(f"{error}; no checkpoint is left to make it again from") from error
            self._say(f"{error}; it is made again from the checkpoint")
            return None
        if not has_checkpoint:
            self.training.final.net.load_state_dict(weights)
        return result

    def _require_finite(self) -> None:
        # a checkpoint of such weights would replace the last one that can be resumed
        for name, tensor in self.training.distiller.state_dict().items():
            if not tensor.isfinite().all():
                raise UserError(
                    f"the weights are no longer finite at step {self.state.step} ({name}); lower "
                    "optimizer.lr or a weight, or set optimizer.clip"
                )

    def _say(self, text: str) -> None:
        if self.fabric.is_global_zero:
            say(text, self.folder.path.name)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _share_statistics(self) -> None:
        # each process has batch-norm statistics of its own images; the first one's get saved
        if distributed.is_initialized():
            for statistic in self.training.final.buffers():
                distributed.broadcast(statistic, src=0)

    def _save_model(self, metrics: Metrics, path: Path) -> None:
        if self.fabric.is_global_zero:
            measured = metrics.to_dict()
            measured.pop("confusion")  # too large for the header of a model file
            save_model(
                self.training.final, path, {"metrics": measured, "run": self.folder.path.name}
            )

    def _restore(self) -> None:
        found = load_checkpoint(self.folder)
        if found is None:
            return
        self.state = found.state
        self.training.finite.skipped = self.state.skipped
        if found.damage is not None:
            self._say(found.damage)
            if self.fabric.is_global_zero:
                # it would replace the sound one at the next save
                self.folder.checkpoint.unlink(missing_ok=True)
        try:
            self.training.load_state_dict(found.states)
        except Exception as error:  # a file of an older version, or another one
            reason = one_line(error)
            raise UserError(
                f"checkpoint {self.folder.checkpoint} does not fit this model and data ({reason}); "
                "choose another run folder"
            ) from error
