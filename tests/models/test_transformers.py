"""Networks of transformers, against the library's own processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import RunCli, write_folder
from test_sources import CLASSES, two_steps
from tiny_runs import FIT_FLAGS, data_flags, model_flags
from tiny_transformers import SIDE, save_tokenizer, tiny_network, transformers
from torch import Tensor

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.evaluation.cost import gmacs
from aicsd.models import ModelConfig, build_model, load_model, save_model, wrap_module
from aicsd.models.maps import evaluating, resize
from aicsd.models.transformers_net import KINDS, class_log_scores

EOMT = ("eomt", "eomt_dinov3")
ONE_SIZE = ("beit", "data2vec-vision", "dpt", *EOMT)
MASKS = ("maskformer", "mask2former", "oneformer", *EOMT)
PADDED = ("maskformer", "mask2former", "oneformer")
TERMS: dict[str, Any] = {
    "cross_entropy": {"resolution": "input"},
    "pixel_kd": {"weight": 1},
    "widths": {
        "loss": "pairwise",
        "weight": 1,
        "at": {"student": "stage2", "teacher": "stage4"},
        "adapter": "conv1x1",
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ``save_pretrained`` for every kind, with the processor of the library."""
    place = tmp_path_factory.mktemp("networks")
    for kind in KINDS:
        tiny_network(kind).save_pretrained(place / kind)
        save_tokenizer(place / kind)
        processor_of(kind).save_pretrained(place / kind)
    return place


def processor_of(kind: str) -> Any:
    options: dict[str, Any] = {"do_resize": False}
    if kind == "oneformer":  # its names of classes would come from the hub
        return transformers.MaskFormerImageProcessor(**options)
    if kind in ONE_SIZE:
        options = {"size": {"height": SIDE, "width": SIDE}}
    if kind in EOMT:
        options = {"size": {"shortest_edge": SIDE, "longest_edge": SIDE}}
    if kind.startswith("mobile"):
        options["do_center_crop"] = False
    return getattr(transformers, KINDS[kind].processor)(**options)


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    large = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return (0.7 * large + rng.integers(0, 60, (height, width, 3))).astype(np.uint8)


def of_library(folder: Path, image: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """Labels by the image processor of a folder, and scores (C, H, W) at the size of the image."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    kind = KINDS[json.loads((folder / "config.json").read_text())["model_type"]]
    net = getattr(transformers, kind.model).from_pretrained(folder).eval()
    inputs = processor(images=image, return_tensors="pt")
    with torch.no_grad():
        told = {"task_inputs": task_tokens(folder)} if kind.needs_task else {}
        output = net(pixel_values=inputs["pixel_values"], **told)
    if kind.model.startswith("Eomt"):
        output.patch_offsets = inputs["patch_offsets"]
    size = (image.shape[0], image.shape[1])
    (labels,) = processor.post_process_semantic_segmentation(output, target_sizes=[size])
    if not kind.masks:
        return labels.numpy(), F.interpolate(output.logits, size, mode="bilinear")[0]
    (found,) = processor.post_process_semantic_segmentation(
        output, target_sizes=[size], return_segmentation_scores=True
    )
    return labels.numpy(), found.segmentation_scores.log()


def task_tokens(folder: Path) -> Tensor:
    """Tokens as the processor of the library makes them: padded, and 0 without attention."""
    words = transformers.CLIPTokenizer.from_pretrained(folder)
    found = words(["the task is semantic"], padding="max_length", max_length=40, truncation=True)
    return torch.tensor(found["input_ids"]) * torch.tensor(found["attention_mask"])


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_the_library(kind: str, folders: Path) -> None:
    model = load_model(folders / kind)
    assert model.classes.names == ("ground", "disc", "bar")
    # the library counts the padding of masks as image, and has squares for EoMT
    other = {**dict.fromkeys(EOMT, (90, 90)), **dict.fromkeys(PADDED, (96, 64))}.get(kind, (50, 70))
    sizes = [(64, 64), other]
    for size in sizes:
        image = picture(*size)
        labels, scores = of_library(folders / kind, image)
        with torch.no_grad():
            output = model.image_output(image)
        found = resize(output.logits, size, model.align_corners)[0]
        assert (model.predict(image) == labels).mean() >= 0.999
        # centred, so that random weights give every class somewhere
        middle = scores.mean((1, 2), keepdim=True)
        wanted = (scores - middle).argmax(0)
        if kind in MASKS:
            assert torch.allclose(found.exp().sum(0), torch.ones(size), atol=1e-5)
            found = found - found.mean(0) + scores.mean(0)
        assert ((found - middle).argmax(0) == wanted).float().mean() >= 0.999
        assert len(wanted.unique()) > 1


@pytest.mark.parametrize("size", [(64, 64), (90, 90), (64, 150), (150, 64), (100, 130)])
def test_windows_are_those_of_the_library(size: tuple[int, int], tmp_path: Path) -> None:
    """EoMT fits the shorter side, and cuts the longer one into windows."""
    shorter = {"shortest_edge": SIDE, "longest_edge": None}
    folder = eomt_with(tmp_path, do_split_image=True, size=shorter)
    image = picture(*size)
    labels, _ = of_library(folder, image)
    model = load_model(folder)
    assert (model.predict(image) == labels).mean() >= 0.999
    assert len(np.unique(labels)) > 1
    save_model(model, tmp_path / "m.safetensors")
    assert (load_model(tmp_path / "m.safetensors").predict(image) == labels).mean() >= 0.999
    if size == (64, 150):
        stage = model.image_output(image).features["stage4"]
        assert stage.shape[2:] == (8, 19)
        # its first window is that of the image alone
        first = model.image_output(image[:, :64]).features["stage4"]
        assert torch.allclose(stage[..., :5], first[..., :5], atol=1e-5)


def test_a_dpt_of_images_with_kept_ratio(tmp_path: Path) -> None:
    """The library runs it on squares alone; other images are cut into windows that are squares."""
    tiny_network("dpt").save_pretrained(tmp_path)
    transformers.DPTImageProcessor(
        size={"height": SIDE, "width": SIDE}, keep_aspect_ratio=True, ensure_multiple_of=32
    ).save_pretrained(tmp_path)
    model, image = load_model(tmp_path), picture(64, 128)
    with pytest.raises(RuntimeError):
        of_library(tmp_path, image)
    halves = [of_library(tmp_path, image[:, part])[0] for part in (slice(64), slice(64, 128))]
    assert (model.predict(image) == np.concatenate(halves, axis=1)).mean() >= 0.999
    square = picture(90, 90)
    labels, _ = of_library(tmp_path, square)
    assert (model.predict(square) == labels).mean() >= 0.999


@pytest.mark.parametrize("size", [(64, 64), (64, 32), (50, 90), (128, 64)])
def test_padding_of_one_size_is_no_image(size: tuple[int, int], tmp_path: Path) -> None:
    """EoMT fits the longer side; the library cuts the padding of its panoptic masks alone."""
    folder = eomt_with(tmp_path, do_pad=True)
    image = picture(*size)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    net = transformers.EomtForUniversalSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        output = net(processor(images=image, return_tensors="pt")["pixel_values"])
    masks = F.interpolate(output.masks_queries_logits, (SIDE, SIDE), mode="bilinear").sigmoid()
    classes = output.class_queries_logits.softmax(-1)[..., :-1]
    scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
    (wanted,) = processor.unpad_image(scores, [size], {"shortest_edge": 64, "longest_edge": 64})
    labels = wanted.argmax(0).numpy()
    assert (load_model(folder).predict(image) == labels).mean() >= 0.999
    assert len(np.unique(labels)) > 1


def eomt_with(place: Path, **changes: Any) -> Path:
    """A tiny EoMT whose queries differ, with an image processor of its own."""
    folder, net = place / "network", tiny_network("eomt")
    torch.manual_seed(0)
    with torch.no_grad():
        net.query.weight.normal_(std=3)
        net.class_predictor.weight.normal_(std=3)
        for value in net.mask_head.parameters():
            value.mul_(4)
    net.save_pretrained(folder)
    size = {"shortest_edge": SIDE, "longest_edge": SIDE}
    processor = transformers.EomtImageProcessor(**{"size": size, **changes})
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_network_is_the_same(kind: str, folders: Path, tmp_path: Path) -> None:
    model, path = load_model(folders / kind), tmp_path / "m.safetensors"
    save_model(model, path)
    loaded = load_model(path)
    assert (loaded.origin, loaded.input, loaded.maps) == (model.origin, model.input, model.maps)
    image = picture(50, 70)
    assert (loaded.predict(image) == model.predict(image)).all()
    assert {"logits", "stage1", "stage2", "stage4"} <= model.maps.keys()
    assert 0 < len(loaded.backbone_parameters()) < len(list(loaded.parameters()))
    for name, maps in model.image_output(image).features.items():
        assert maps.shape[1] == model.maps[name].channels
    counted = gmacs(model, 70, 50)
    assert counted is not None
    assert counted > 0
    pixels = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    model.train()
    if model.min_batch == 2:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(pixels)
    else:
        model(pixels)


def test_queries_become_log_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(2, 4, 6, generator=generator)
    masks = torch.randn(2, 4, 3, 5, generator=generator) * 3
    for resized in (False, True):
        found = class_log_scores(classes, masks, (3, 5), resized)
        assert found.shape == (2, 5, 3, 5)
        for image in range(2):
            for row in range(3):
                for column in range(5):
                    sums = [
                        sum(
                            float(classes[image, q].double().softmax(0)[c])
                            * float(masks[image, q, row, column].double().sigmoid())
                            for q in range(4)
                        )
                        for c in range(5)
                    ]
                    wanted = torch.tensor(sums).log()
                    assert torch.allclose(found[image, :, row, column], wanted, atol=1e-5)
    nothing = class_log_scores(classes, torch.full_like(masks, -300.0), (3, 5), True)
    assert torch.allclose(nothing.softmax(1), torch.full_like(nothing, 0.2))
    assert class_log_scores(classes, masks, (12, 20), True).shape == (2, 5, 12, 20)


def test_padding_is_no_image(folders: Path) -> None:
    """The masks of a padded image are cut to the image."""
    model = load_model(folders / "mask2former")
    assert model.input.multiple == 32
    image = picture(50, 70)
    color = np.array(model.input.color, np.uint8)
    padded = np.broadcast_to(color, (64, 96, 3)).copy()
    padded[:50, :70] = image
    whole = load_model(folders / "mask2former").predict(padded)
    assert (model.predict(image) == whole[:50, :70]).mean() >= 0.98  # the mean colour is rounded


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3, "scale": 1 / 255}),
        ({"do_rescale": False}, {"scale": 1.0, "mean": (0.485, 0.456, 0.406)}),
        ({"rescale_factor": 0.5}, {"scale": 0.5}),
        ({"image_mean": [0.1, 0.2, 0.3]}, {"mean": (0.1, 0.2, 0.3), "std": (0.229, 0.224, 0.225)}),
        ({"do_flip_channel_order": True}, {"bgr": True}),
        ({"size_divisor": 32}, {"multiple": 32}),
        ({"size": {"height": 128, "width": 128}}, {"size": None}),
    ],
)
def test_the_input_is_that_of_the_image_processor(
    changes: dict[str, Any], fields: dict[str, Any], folders: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folders / "segformer" / name)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(changes))
    found = load_model(tmp_path).input._asdict()
    for key, value in fields.items():
        assert found[key] == (pytest.approx(value) if key in ("mean", "std", "scale") else value)


def test_folders_that_cannot_be_used(folders: Path, tmp_path: Path) -> None:
    tiny_network("segformer").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def refused(words: str, **changes: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=words) as caught:
            load_model(tmp_path)
        assert "\n" not in str(caught.value)

    refused("the kind 'bert', which is none of segformer,", model_type="bert")
    held = config.pop("model_type")
    refused("config.json describes no network of smp or transformers")
    config["model_type"] = held
    refused(
        "holds a SegformerForImageClassification; only a SegformerForSemanticSegmentation",
        architectures=["SegformerForImageClassification"],
    )
    refused("weights missing or of another shape, such as decode_head", decoder_hidden_size=20)
    refused("cannot be read|does not hold the network", hidden_sizes="x")
    (tmp_path / "preprocessor_config.json").write_text('{"image_std": [0, 1, 1]}')
    refused("preprocessor_config.json: image_mean")
    (tmp_path / "preprocessor_config.json").write_text("[")
    refused("is no JSON file")
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    refused("names 2 classes, and the network has 3")
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04")
    refused("does not hold the network|not a readable")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused("pytorch_model.bin is a pickle.*not read")
    with pytest.raises(UserError, match="names a network without weights"):
        load_model("transformers:segformer-b0")


def describe(folder: Path, **changes: Any) -> None:
    """Change the configuration in a folder."""
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**held, **changes}))


def test_a_network_of_tasks_is_told_its_task(tmp_path: Path) -> None:
    classes = Classes(("ground", "disc", "bar"), ((0, 0, 0),) * 3)
    net = tiny_network("oneformer")
    net.save_pretrained(tmp_path)
    clip = [49406, 518, 10549, 533, 29119, 1550, 49407, *[0] * 33]
    for model in (wrap_module(net, classes), load_model(tmp_path)):
        assert model.net.get_buffer("task").tolist() == [clip]
    net.config.text_encoder_vocab_size = 1000
    describe(tmp_path, text_encoder_vocab_size=1000)
    with pytest.raises(UserError, match=r"a module.* a vocabulary of its own \(1000 words\)"):
        wrap_module(net, classes)
    with pytest.raises(UserError, match=r"a vocabulary of its own \(1000 words\)"):
        load_model(tmp_path)
    save_tokenizer(tmp_path)
    describe(tmp_path, text_encoder_vocab_size=49408)
    assert torch.equal(load_model(tmp_path).net.get_buffer("task"), task_tokens(tmp_path))


def test_a_folder_without_names_of_classes(tmp_path: Path) -> None:
    tiny_network("segformer", ("LABEL_0", "LABEL_1")).save_pretrained(tmp_path)
    assert load_model(tmp_path).classes.names == ("class_0", "class_1")
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    assert load_model(tmp_path).classes.names == ("sky", "road")


def test_students_by_name() -> None:
    classes = Classes(("a", "b"), ((0, 0, 0),) * 2)
    sizes = {}
    for name in ("segformer-b0", "segformer-b1"):
        model = build_model(ModelConfig(family=f"transformers:{name}"), classes)
        assert [info.stride for key, info in model.maps.items()] == [4, 4, 8, 16, 32]
        sizes[name] = model.num_parameters() / 1e6
    # table 1 of the paper has 3.8 and 13.7 with 150 classes
    assert sizes == pytest.approx({"segformer-b0": 3.72, "segformer-b1": 13.68}, abs=0.03)
    with evaluating(model):
        assert model(torch.zeros(1, 3, 65, 97, dtype=torch.uint8)).logits.shape[:2] == (1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_teaches_and_learns(kind: str, folders: Path) -> None:
    small = ModelConfig(backbone="test_resnet", aspp_channels=8, decoder_channels=8)
    for student, teacher in (
        (build_model(small, CLASSES), load_model(folders / kind)),
        (load_model(folders / kind), build_model(small, CLASSES)),
    ):
        assert two_steps(student, teacher, TERMS, SIDE).keys() >= TERMS.keys()


def test_the_cost_of_a_crop_that_is_too_small_is_one_line(
    folders: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    flags = [*data_flags(write_folder(tmp_path / "data")), "--data.batch_size", "4", *FIT_FLAGS]
    code, _, error = run_cli("benchmark", "cost", *flags, *model_flags("student"), "--method", "kd",
                             "--teacher", folders / "maskformer", "--steps", "1")  # fmt: skip
    assert code == 2
    words = "aicsd: error: data.augment.crop is 32, and the networks cannot be run on such an image"
    assert error.splitlines()[-1].startswith(words)
