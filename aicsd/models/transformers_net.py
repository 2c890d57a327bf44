"""Networks of transformers with logits and maps of one form."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicsd.models.maps import STAGES
from aicsd.models.taps import Tap, as_maps
from aicsd.types import SegOutput


class Kind(NamedTuple):
    """A model type of the library: its classes, and where its maps are."""

    config: str
    model: str
    processor: str
    """The image processor whose defaults hold where a folder has none."""
    backbone: str
    """Submodule that starts from the weights of a classifier."""
    masks: str = ""
    """``first``: class scores are computed at the size of the masks and then resized, ``last``:
    masks are resized to the image before. Empty for a per-pixel classifier."""
    hook: str = ""
    """Module that returns ``feature_maps``; without it they are the hidden states."""
    min_batch: int = 1
    needs_task: bool = False
    """Whether it needs tokens that name the task, semantic segmentation."""
    one_size: bool = False
    """Whether it takes images of ``config.image_size`` alone."""
    exports_one_size: bool = False
    """Whether its code computes with the size of an image in ways that fix it in a traced graph."""


NO_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
MASKED_BLOCKS = "attn_mask_probs"
"""Buffer of EoMT: the part of the queries of each block whose attention is masked."""
ENCODER = "model.pixel_level_module.encoder"
KINDS = {
    "segformer": Kind(
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        "SegformerImageProcessor",
        "net.segformer",
    ),
    "upernet": Kind(
        "UperNetConfig",
        "UperNetForSemanticSegmentation",
        "SegformerImageProcessor",
        "net.backbone",
        hook="backbone",
        min_batch=2,
    ),
    "dpt": Kind(
        "DPTConfig",
        "DPTForSemanticSegmentation",
        "DPTImageProcessor",
        "net.dpt",
        one_size=True,
    ),
    "beit": Kind(
        "BeitConfig",
        "BeitForSemanticSegmentation",
        "BeitImageProcessor",
        "net.beit",
        min_batch=2,
        one_size=True,
    ),
    "data2vec-vision": Kind(
        "Data2VecVisionConfig",
        "Data2VecVisionForSemanticSegmentation",
        "BeitImageProcessor",
        "net.data2vec_vision",
        min_batch=2,
        one_size=True,
    ),
    "mobilevit": Kind(
        "MobileViTConfig",
        "MobileViTForSemanticSegmentation",
        "MobileViTImageProcessor",
        "net.mobilevit",
        min_batch=2,
        exports_one_size=True,
    ),
    "mobilenet_v2": Kind(
        "MobileNetV2Config",
        "MobileNetV2ForSemanticSegmentation",
        "MobileNetV2ImageProcessor",
        "net.mobilenet_v2",
        min_batch=2,
        exports_one_size=True,
    ),
    "maskformer": Kind(
        "MaskFormerConfig",
        "MaskFormerForInstanceSegmentation",
        "MaskFormerImageProcessor",
        f"net.{ENCODER}",
        masks="first",
        hook=ENCODER,
        exports_one_size=True,
    ),
    "mask2former": Kind(
        "Mask2FormerConfig",
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerImageProcessor",
        f"net.{ENCODER}",
        masks="last",
        hook=ENCODER,
        exports_one_size=True,
    ),
    "oneformer": Kind(
        "OneFormerConfig",
        "OneFormerForUniversalSegmentation",
        "OneFormerImageProcessor",
        f"net.{ENCODER}",
        masks="first",
        hook=ENCODER,
        needs_task=True,
        exports_one_size=True,
    ),
    "eomt": Kind(
        "EomtConfig",
        "EomtForUniversalSegmentation",
        "EomtImageProcessor",
        "net.layers",
        masks="last",
        one_size=True,
    ),
    "eomt_dinov3": Kind(
        "EomtDinov3Config",
        "EomtDinov3ForUniversalSegmentation",
        "EomtImageProcessor",
        "net.layers",
        masks="last",
        one_size=True,
    ),
}
"""``model_type`` of a configuration -> what it is."""


class TransformersNet(nn.Module):
    """A network of the library.

    ``forward`` takes a normalised (B, 3, H, W) image. It returns logits at the stride of the
    network, or logarithms of scores at the size of the image if it classifies masks, and ``stage1``
    to ``stage4`` as far as it has them.
    """

    task: Tensor | None
    """(1, L) tokens of the task, of a network that needs them."""
    smallest_exported_side = 64
    """Attention is computed on maps that are reduced once more."""

    def __init__(self, net: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.net = net
        self._masks, self._hook = kind.masks, kind.hook
        self.exports_one_size = kind.exports_one_size
        # a buffer, so that it comes with the weights
        length = int(net.config.task_seq_len) if kind.needs_task else 0  # type: ignore[union-attr, arg-type]
        tokens = torch.zeros((1, length), dtype=torch.int64) if length else None
        self.register_buffer("task", tokens)

    def forward(self, image: Tensor) -> SegOutput:
        found: list[Any] = []
        hook = None
        # an exported file has logits alone, and sides that are no numbers yet
        is_traced = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if self._hook and not is_traced:
            module = self.net.get_submodule(self._hook)
            hook = module.register_forward_hook(lambda _, __, output: found.append(output))
        try:
            wanted = not (self._hook or is_traced)
            told = {} if self.task is None else {"task_inputs": self.task.expand(len(image), -1)}
            with _without_checks() if is_traced else nullcontext():
                output = self.net(image, output_hidden_states=wanted, return_dict=True, **told)
        finally:
            if hook is not None:
                hook.remove()
        size = (image.shape[-2], image.shape[-1])
        stages: dict[str, Tensor] = {}
        if not is_traced:
            states = found[0].feature_maps if found else output.hidden_states
            stages = _stages(states, size, getattr(self.net, "config", None))
        if not self._masks:
            return SegOutput(output.logits, stages)
        scores = class_log_scores(
            output.class_queries_logits, output.masks_queries_logits, size, self._masks == "last"
        )
        return SegOutput(scores, stages)

    def for_export(self) -> TransformersNet:
        """Copy of the network on the same weights, with a branch that does not depend on tensors.

        EoMT masks the attention of a block where a number of its is above 0, which a traced graph
        cannot ask of a tensor.
        """
        held = getattr(self.net, MASKED_BLOCKS, None)
        if held is None:
            return self
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        traced = copy.deepcopy(self, shared)
        delattr(traced.net, MASKED_BLOCKS)
        setattr(traced.net, MASKED_BLOCKS, held.tolist())
        return traced


@contextmanager
def _without_checks() -> Iterator[None]:
    """The library without its checks of values, which no exported file has."""
    before = os.environ.get(NO_CHECKS)
    os.environ[NO_CHECKS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_CHECKS]
        else:
            os.environ[NO_CHECKS] = before


def class_log_scores(
    classes: Tensor, masks: Tensor, size: tuple[int, int], resize_masks: bool
) -> Tensor:
    """Queries of a mask classifier -> per-pixel logarithms of scores of the classes.

    The score of c at x is the sum over the queries q of softmax(classes_q)_c sigmoid(mask_q(x)),
    the semantic inference of MaskFormer (arXiv 2107.06278, section 3.4), without "no object".

    Args:
        classes: (B, Q, C + 1) logits, "no object" last.
        masks: (B, Q, h, w) logits.
        size: (H, W) of the result.
        resize_masks: whether masks are resized to ``size``, or the sums over them.

    Returns:
        (B, C, H, W) float32; a softmax over the classes makes them probabilities.
    """
    weights = classes.float().softmax(dim=-1)[..., :-1]
    images = []
    # image by image, since all masks of one at its full size are large
    for weight, mask in zip(torch.split(weights, 1), torch.split(masks.float(), 1), strict=True):
        if resize_masks:
            mask = _resized(mask, size)
        score = torch.einsum("bqc,bqhw->bchw", weight, mask.sigmoid())
        images.append(_resized(score, size))
    scores = torch.cat(images)
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _stages(states: Sequence[Tensor], size: tuple[int, int], config: Any) -> dict[str, Tensor]:
    """The last map of each resolution, at most four, from the largest one of stride 4 or more on.

    Tokens of plain vision transformers are laid out as maps, four spread evenly over the depth.
    """
    if states[0].dim() == 3:
        chosen = [states[round(part * (len(states) - 1) / 4)] for part in (1, 2, 3, 4)]
        return {
            name: as_maps(
                tokens,
                Tap(name, "tokens", _extra_tokens(tokens.shape[1], size, config)),
                size,
                name,
            )
            for name, tokens in zip(STAGES, chosen, strict=True)
        }
    last: dict[int, Tensor] = {}
    for maps in states:
        if round(size[1] / maps.shape[-1]) >= 4:
            last[maps.shape[-1]] = maps
    named = dict(zip(STAGES, last.values(), strict=False))
    # a dilated network has fewer resolutions, and its deepest map is stage4 nevertheless
    return {**named, STAGES[-1]: list(last.values())[-1]} if last else {}


def _extra_tokens(count: int, size: tuple[int, int], config: Any) -> int:
    """Tokens beside those of the patches: class, register and query tokens."""
    patch = getattr(config, "patch_size", 16)
    rows, columns = (patch, patch) if isinstance(patch, int) else tuple(map(int, patch))
    return count - (size[0] // rows) * (size[1] // columns)
