"""Every setting of a run. Defaults live here; the command line and its help are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal

from aicsd.data.settings import DataConfig
from aicsd.errors import UserError, suggest
from aicsd.models.settings import ModelConfig
from aicsd.types import EvaluationProtocol, Runtime

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Logger -> the package that it needs."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer with groups for backbone, head and terms, and a schedule of the learning rate."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd, as in the released code, or adamw, for short runs and random weights."""
    lr: float = 0.007
    """learning rate of the backbone."""
    head_lr_factor: float = 10.0
    """learning rate of the rest of the student, as a multiple of lr."""
    terms_lr_factor: float | None = None
    """learning rate of adapters and other trainable parts of the terms, as a multiple of lr;
    null: that of the head."""
    weight_decay: float = 5e-4
    """weight decay of all parameters."""
    momentum: float = 0.9
    """momentum of sgd."""
    nesterov: bool = False
    """Nesterov momentum for sgd."""
    schedule: Literal["poly", "cosine"] = "poly"
    """learning-rate schedule: poly, lr (1 - progress)^power, or cosine, half a cosine from lr to
    0."""
    power: float = 0.9
    """power of the poly schedule; 0 keeps the learning rate constant."""
    warmup: float = 0.0
    """linear warmup of the learning rate: below 1, a fraction of the training; from 1 on, a number
    of steps; 0: none."""
    clip: float = 0.0
    """gradient clipping: largest norm; 0: none."""
    skip_nonfinite: bool = False
    """skip and count steps with a NaN or infinite loss or gradient; false: stop at the first."""
    accumulate: int = 1
    """gradient accumulation: batches per step."""
    ema: float = 0.0
    """decay of an exponential moving average of the student's weights, which is then evaluated
    and saved; usual are 0.99 to 0.9999; 0: none."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"optimizer.lr is {self.lr}; it must be above 0")
        if self.accumulate < 1:
            raise UserError(f"optimizer.accumulate is {self.accumulate}; it must be 1 or more")
        for name in ("head_lr_factor", "weight_decay", "momentum", "power", "clip"):
            if getattr(self, name) < 0:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.warmup < float("inf") or (self.warmup > 1 and self.warmup % 1):
            raise UserError(
                f"optimizer.warmup is {self.warmup}; it is a part of training below 1, or a whole "
                "number of steps"
            )
        if self.terms_lr_factor is not None and self.terms_lr_factor < 0:
            raise UserError(
                f"optimizer.terms_lr_factor is {self.terms_lr_factor}; it must be 0 or more"
            )
        if self.nesterov and not self.momentum:
            raise UserError("optimizer.nesterov needs an optimizer.momentum above 0")
        if not 0 <= self.ema < 1:
            raise UserError(f"optimizer.ema is {self.ema}; it is 0 or more and below 1")

    def in_steps(self, total: int) -> OptimizerConfig:
        """The settings of a training of ``total`` steps, with the warmup as a number of steps."""
        if self.warmup >= 1:
            return self
        return replace(self, warmup=float(round(self.warmup * total)))


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of every training."""

    run: str
    """run folder for config, logs, checkpoints and the trained model."""
    data: DataConfig = field(default_factory=DataConfig)
    """dataset, splits, augmentation and loading."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """optimizer and learning-rate schedule."""
    epochs: int = 50
    """passes over the training images."""
    val_every: int = 1
    """epochs between validations; 0: only at the end."""
    save_every: int = 100
    """steps between checkpoints; an interrupted run loses at most that many."""
    log_every: int = 10
    """steps between lines of metrics.jsonl."""
    logger: str = "tensorboard"
    """logger for metrics and a few pictures: {loggers}, several separated by commas, or none."""
    report_images: int = 6
    """images in report.html, written at the end; 0: no report."""
    seed: int = 0
    """seed of weights, order, augmentation and dropout."""
    resume: bool = False
    """continue the run in the folder, with its own config."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """processes per machine, one per device."""
    num_nodes: int = 1
    """number of machines."""
    sync_bn: bool | None = None
    """synchronise batch norm over all processes; default: if a process has fewer than 4 images in
    a batch."""
    precision: Precision = "32-true"
    """number format of the forward and backward pass."""
    cuda_graphs: bool = False
    """capture the passes of student and teacher as CUDA graphs, which reduces the launch overhead
    of small networks on small crops. Requires 32-true and one device."""
    protocol: EvaluationProtocol = "standard"
    """standard: native resolution, padding ignored; released: losses, padding and evaluation as
    in the released AICSD code."""

    @staticmethod
    def help_words() -> dict[str, str]:
        """Text for ``{word}`` in the help."""
        return {"loggers": ", ".join(LOGGERS)}

    @property
    def val_short_side(self) -> int:
        """Shorter side of validation images in pixels, as the released code has it; 0: native."""
        return self.data.augment.crop if self.protocol == "released" else 0

    def __post_init__(self) -> None:
        for name in ("epochs", "save_every", "log_every", "devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("val_every", "report_images"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        logger_names(self.logger)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; it must be 0 or more and below 2^63")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig):
    """Train a network on labels only: a teacher, or a baseline."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """network to train."""
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """options of the cross entropy, and further terms on labels, for example
    --terms.cross_entropy.class_weights balanced."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(FitConfig):
    """Distil a teacher into a student."""

    teacher: str | None = None
    """run folder or model file of the trained teacher, or a checkpoint of the released AICSD
    code."""
    teacher_classes: str | None = None
    """map of the teacher's classes to those of the data: a YAML file with lines such as
    'sidewalk: Pavement' (several may map to one, null leaves one out), or cityscapes_camvid;
    default: classes are matched by name."""
    force_teacher: bool = False
    """train even if the teacher's validation mIoU is no better than guessing, or than that of
    finished runs of the student alone beside the run; runs of fewer than 200 steps do so
    anyway."""
    in_benchmark: bool = False
    """train even if the teacher's validation mIoU is no better than that of the student alone,
    because the table says so; set by aicsd benchmark methods."""
    teacher_runtime: Runtime = "eager"
    """eager, compiled (torch.compile: a slower start, faster steps), or openvino (on a CPU; for
    methods that compare logits)."""
    teacher_cache: str | None = None
    """folder of the teacher's logits, computed once for every training image, so that the teacher
    does not run during training; created if it does not exist. For methods that compare logits."""
    teacher_cache_top_k: int = 0
    """number of largest logits of a pixel that the cache keeps, with the mass of the rest; 0
    keeps all. For methods that compare class probabilities only."""
    student: ModelConfig = field(default_factory=ModelConfig)
    """network to train."""
    method: str = "aicsd"
    """a method, or a YAML file with a recipe."""
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """changes to the recipe by term and key, for example --terms.icsd.weight 50."""
    terms_of: str | None = None
    """method whose keys terms holds completely, so that no recipe is read; set in the config of a
    run."""


def logger_names(text: str) -> list[str]:
    """``wandb,tensorboard`` -> the names; ``none`` -> nothing.

    Raises:
        UserError: an unknown logger, or one whose package is not installed.
    """
    names = [name.strip() for name in text.split(",")]
    if names == ["none"]:
        return []
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"logger: unknown {name!r}{suggest(name, [*LOGGERS, 'none'])}")
        if find_spec(LOGGERS[name]) is None:
            raise UserError(
                f"logger: {name} is not installed; pip install {LOGGERS[name]}, or choose another"
            )
    return names
