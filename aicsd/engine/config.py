"""Every setting of a run. Defaults live here; the command line and its help are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from aicsd.data.settings import DataConfig
from aicsd.engine.trackers import check_loggers
from aicsd.errors import UserError
from aicsd.models.settings import ModelConfig
from aicsd.types import Protocol, Runtime

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer with groups for backbone, head and terms, and a schedule of the learning rate."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd, as released, or adamw, for short runs and random weights."""
    lr: float = 0.007
    """learning rate of the backbone."""
    head_lr_factor: float = 10.0
    """learning rate of everything else of the student, as a multiple of lr."""
    terms_lr_factor: float | None = None
    """learning rate of adapters and other trainable parts of the terms, as a multiple of lr;
    null: that of the head."""
    weight_decay: float = 5e-4
    """weight decay of all parameters."""
    momentum: float = 0.9
    """momentum of sgd."""
    nesterov: bool = False
    """the Nesterov form of the momentum of sgd."""
    schedule: Literal["poly", "cosine"] = "poly"
    """poly, lr (1 - progress)^power, or cosine, half a cosine from lr to 0."""
    power: float = 0.9
    """power of the poly schedule; 0 keeps the learning rate constant."""
    warmup: float = 0.0
    """the learning rate rises to its schedule in a straight line: over this part of training, or
    from 1 on, over this many steps; 0: from the start."""
    clip: float = 0.0
    """largest norm of the gradient; 0 does not clip."""
    skip_nonfinite: bool = False
    """skip the update of a step whose loss or gradient is NaN or infinite, and count such steps;
    without it the run stops at the first."""
    accumulate: int = 1
    """batches whose gradients are summed into one step."""
    ema: float = 0.0
    """decay of an exponential moving average of the student, which then is what gets evaluated
    and saved; 0 switches it off, 0.99 to 0.9999 are usual."""

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


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What every training run has."""

    run: str
    """folder that gets config, logs, checkpoints and the trained model."""
    data: DataConfig = field(default_factory=DataConfig)
    """dataset, splits, augmentation and loading."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """optimizer and learning-rate schedule."""
    epochs: int = 50
    """passes over the training images."""
    val_every: int = 1
    """validate after every that many epochs, and at the end; 0: only at the end."""
    save_every: int = 100
    """steps between two checkpoints; at most that many are lost when a run is cut."""
    log_every: int = 10
    """steps between two lines of metrics.jsonl."""
    logger: str = "tensorboard"
    """where the same figures and a few pictures go too: tensorboard, wandb, mlflow, several
    with commas between, or none."""
    report_images: int = 6
    """images in report.html, which is written at the end; 0: no report."""
    seed: int = 0
    """seed of weights, order, augmentation and dropout."""
    resume: bool = False
    """continue the run in the folder; its config need not be repeated."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    devices: int = 1
    """processes per machine, one per device."""
    num_nodes: int = 1
    """number of machines."""
    sync_bn: bool | None = None
    """batch norm over the images of all processes; null: where a process has fewer than 4 images
    in a batch."""
    precision: Precision = "32-true"
    """number format of the forward and backward pass."""
    cuda_graphs: bool = False
    """record the passes of student and teacher as CUDA graphs: a GPU then
    waits less for the launches of small networks on small crops. In 32-true, on one device."""
    protocol: Protocol = "standard"
    """standard: every pixel at its own resolution, padding ignored; released: as the released
    AICSD code, where that decides its figures (losses, padding, evaluation)."""

    def __post_init__(self) -> None:
        for name in ("epochs", "save_every", "log_every", "devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("val_every", "report_images"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        check_loggers(self.logger)
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; it must be 0 or more and below 2^63")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(FitConfig):
    """Train a network on labels alone: a teacher, or a student without one."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """the network to train."""
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """changes to the cross entropy, and further terms on labels, for example
    --terms.cross_entropy.class_weights balanced."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(FitConfig):
    """Distil a teacher into a student."""

    teacher: str | None = None
    """run folder or model file of the trained teacher, or a checkpoint of the released AICSD
    code."""
    teacher_classes: str | None = None
    """what the teacher's classes are called in the data: a YAML file with lines such as
    'sidewalk: Pavement' (several may become one, null leaves one out), or cityscapes_camvid;
    without it classes meet by name."""
    force_teacher: bool = False
    """train with a teacher whose validation mIoU is no better than guessing; a run of fewer than
    200 steps does so anyway."""
    teacher_runtime: Runtime = "eager"
    """eager, compiled (torch.compile: some time at the start, less at each step), or openvino
    (on a CPU; for methods that compare logits)."""
    teacher_cache: str | None = None
    """folder of the teacher's logits, computed once for every training image; it is made if it
    is not there. The teacher then does not run during training. For methods that compare
    logits."""
    teacher_cache_top_k: int = 0
    """how many of the largest logits of a pixel the cache keeps, with the mass of the rest; 0
    keeps all. For methods that compare class probabilities only."""
    student: ModelConfig = field(default_factory=ModelConfig)
    """the network to train."""
    method: str = "aicsd"
    """a method, or a YAML file with a recipe."""
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """changes to the recipe by term and key, for example --terms.icsd.weight 50."""
    terms_of: str | None = None
    """in the config of a run, the method of which terms holds every key; the recipe is not read
    then."""
