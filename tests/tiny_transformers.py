"""Tiny untrained networks of transformers, one of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIDE = 64
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def tiny_network(kind: str, names: tuple[str, ...] = ("ground", "disc", "bar")) -> Any:
    """A network of the ``model_type`` ``kind`` whose labels change over an image of noise."""
    torch.manual_seed(0)
    net = _BUILD[kind](
        {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    )
    _enliven(net)
    return net.eval()


def _enliven(net: nn.Module) -> None:
    """Weights that pass on the spread of their input, where the library starts near zero."""
    for name, value in net.named_parameters():
        if value.dim() > 1:
            nn.init.normal_(value, std=value[0].numel() ** -0.5)
        elif "bias" in name or "lambda" in name:
            nn.init.normal_(value, std=0.1)


def _swin() -> Any:
    return transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        image_size=SIDE,
        out_features=STAGES,
    )


def _segformer(more: dict[str, Any]) -> Any:
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            hidden_sizes=[8, 16, 16, 24],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            **more,
        )
    )


def _upernet(more: dict[str, Any]) -> Any:
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], out_features=STAGES
    )
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=backbone,
            hidden_size=16,
            auxiliary_channels=8,
            auxiliary_in_channels=16,
            **more,
        )
    )


VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 16,
}


def _dpt(more: dict[str, Any]) -> Any:
    return transformers.DPTForSemanticSegmentation(
        transformers.DPTConfig(
            **VIT,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16,
            **more,
        )
    )


def _beit(more: dict[str, Any]) -> Any:
    return transformers.BeitForSemanticSegmentation(
        transformers.BeitConfig(
            **VIT, out_indices=[1, 2, 3, 4], use_relative_position_bias=True, **more
        )
    )


def _data2vec(more: dict[str, Any]) -> Any:
    return transformers.Data2VecVisionForSemanticSegmentation(
        transformers.Data2VecVisionConfig(
            **VIT, out_indices=[1, 2, 3, 4], use_relative_position_bias=True, **more
        )
    )


def _mobilevit(more: dict[str, Any]) -> Any:
    return transformers.MobileViTForSemanticSegmentation(
        transformers.MobileViTConfig(
            hidden_sizes=[8, 12, 16],
            neck_hidden_sizes=[8, 8, 12, 16, 16, 16, 24],
            num_attention_heads=2,
            image_size=SIDE,
            aspp_out_channels=16,
            **more,
        )
    )


def _mobilenet(more: dict[str, Any]) -> Any:
    return transformers.MobileNetV2ForSemanticSegmentation(
        transformers.MobileNetV2Config(depth_multiplier=0.25, output_stride=8, **more)
    )


def _maskformer(more: dict[str, Any]) -> Any:
    decoder = transformers.DetrConfig(
        d_model=16,
        decoder_layers=1,
        encoder_layers=1,
        decoder_ffn_dim=16,
        encoder_ffn_dim=16,
        decoder_attention_heads=2,
        encoder_attention_heads=2,
        num_queries=5,
    )
    return transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=_swin(),
            decoder_config=decoder,
            fpn_feature_size=32,
            mask_feature_size=32,
            **more,
        )
    )


def _mask2former(more: dict[str, Any]) -> Any:
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=_swin(),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            dim_feedforward=16,
            num_queries=5,
            **more,
        )
    )


def _oneformer(more: dict[str, Any]) -> Any:
    return transformers.OneFormerForUniversalSegmentation(
        transformers.OneFormerConfig(
            backbone_config=_swin(),
            conv_dim=32,
            mask_dim=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            query_dec_layers=1,
            dim_feedforward=16,
            num_queries=5,
            task_seq_len=40,
            **more,
        )
    )


def save_tokenizer(folder: Path) -> None:
    """A vocabulary of single letters, as the files of a CLIP tokenizer."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    numbers = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def _eomt(more: dict[str, Any]) -> Any:
    return transformers.EomtForUniversalSegmentation(
        transformers.EomtConfig(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=8,
            num_upscale_blocks=1,
            num_blocks=1,
            num_queries=5,
            num_register_tokens=2,
            **more,
        )
    )


def _eomt_dinov3(more: dict[str, Any]) -> Any:
    return transformers.EomtDinov3ForUniversalSegmentation(
        transformers.EomtDinov3Config(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=SIDE,
            patch_size=8,
            num_upscale_blocks=1,
            num_blocks=1,
            num_queries=5,
            num_register_tokens=2,
            **more,
        )
    )


_BUILD = {
    "segformer": _segformer,
    "upernet": _upernet,
    "dpt": _dpt,
    "beit": _beit,
    "data2vec-vision": _data2vec,
    "mobilevit": _mobilevit,
    "mobilenet_v2": _mobilenet,
    "maskformer": _maskformer,
    "mask2former": _mask2former,
    "oneformer": _oneformer,
    "eomt": _eomt,
    "eomt_dinov3": _eomt_dinov3,
}
