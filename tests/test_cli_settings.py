"""Effects of methods, terms and settings of the command line on a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from command_runs import MEASURES, METHOD_TERMS, check, checkpoint_of, result_of
from conftest import CLASS_NAMES, TINY_MODEL, RunCli
from tiny_runs import (
    NO_REPORT,
    distill_command,
    model_flags,
    same_weights,
    train_command,
    train_lines,
    weights,
)
from torch import nn

from aicsd.data import Classes, open_dataset
from aicsd.data.batches import plan_batches
from aicsd.data.loaders import train_loader
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.evaluation import evaluate
from aicsd.models import ModelConfig, Segmenter, build_model, load_model, resize, save_model

# methods and terms


@pytest.mark.parametrize("method", METHOD_TERMS)
def test_every_method_runs(
    root: Path, teacher: Path, tmp_path: Path, run_cli: RunCli, method: str
) -> None:
    run = tmp_path / method
    command = distill_command(root, teacher, run, "--method", method, "--epochs", "1")
    if method == "none":
        place = command.index("--teacher")
        del command[place : place + 2]
    check(run_cli(*command, *NO_REPORT))
    terms = METHOD_TERMS[method]
    for line in train_lines(run):
        found = {name.removeprefix("loss/") for name in line if name.startswith("loss/")}
        assert found == terms
        total = sum(line[f"weight/{name}"] * line[f"loss/{name}"] for name in terms)
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert (result_of(run)["teacher"] is None) == (method == "none")
    assert set(yaml.safe_load((run / "config.yaml").read_text())["terms"]) == terms


def test_train_is_the_method_none(
    baseline: Path, root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "none"
    command = distill_command(root, "unused", run, "--method", "none", "--epochs", "1")
    check(run_cli(*command, *NO_REPORT))
    assert same_weights(baseline, run)


def test_term_overrides(root: Path, teacher: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    flags = [
        "--epochs", "1", "--method", "kd", "--terms.pixel_kd.weight", "0.5",
        "--terms.pixel_kd.schedule", "falling", "--terms.icsd.weight", "4",
        "--terms.cross_entropy.resolution", "native",
    ]  # fmt: skip
    check(run_cli(*distill_command(root, teacher, run, *flags), *NO_REPORT))
    first, second = train_lines(run)
    weight = {
        name: (first[f"weight/{name}"], second[f"weight/{name}"]) for name in METHOD_TERMS["aicsd"]
    }
    assert weight == {"cross_entropy": (1, 1), "pixel_kd": (0.5, 0.25), "icsd": (4, 4)}
    terms = yaml.safe_load((run / "config.yaml").read_text())["terms"]
    assert terms["cross_entropy"]["resolution"] == "native"
    assert terms["icsd"]["weight"] == 4


def test_recipe_file(root: Path, teacher: Path, tmp_path: Path, run_cli: RunCli) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("terms:\n  icsd: {weight: 9, schedule: falling}\n")
    run = tmp_path / "run"
    command = distill_command(root, teacher, run, "--method", recipe, "--epochs", "1")
    check(run_cli(*command, *NO_REPORT))
    first, second = train_lines(run)
    assert (first["weight/icsd"], second["weight/icsd"]) == (9, 4.5)
    assert "loss/cross_entropy" not in first


def test_teacher_with_more_classes_in_another_order(
    root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    names = ("bar", "post", "ground", "disc")
    torch.manual_seed(0)
    model = build_model(ModelConfig(**TINY_MODEL), Classes(names, ((1, 2, 3),) * 4))
    save_model(model, tmp_path / "big.safetensors")
    reduced = build_model(ModelConfig(**TINY_MODEL), Classes(CLASS_NAMES, ((1, 2, 3),) * 3))
    state = model.net.state_dict()
    order = [names.index(name) for name in CLASS_NAMES]
    for key in ("classifier.weight", "classifier.bias"):
        state[key] = state[key][order]
    reduced.net.load_state_dict(state)
    save_model(reduced, tmp_path / "small.safetensors")
    for name in ("big", "small"):
        file = tmp_path / f"{name}.safetensors"
        check(run_cli(*distill_command(root, file, tmp_path / name, "--epochs", "1"), *NO_REPORT))
    big, small = (train_lines(tmp_path / name) for name in ("big", "small"))
    assert big[0]["loss"] == pytest.approx(small[0]["loss"], rel=1e-5)
    assert big[1]["loss"] == pytest.approx(small[1]["loss"], rel=1e-2)
    assert result_of(tmp_path / "big")["teacher"] == result_of(tmp_path / "small")["teacher"]


# optimizer and data settings


@pytest.mark.parametrize(
    "flags",
    [
        "--seed 1",
        "--optimizer.name adamw",
        "--optimizer.lr 0.001",
        "--optimizer.head_lr_factor 2",
        "--optimizer.weight_decay 0.1",
        "--optimizer.momentum 0.5",
        "--optimizer.nesterov true",
        "--optimizer.power 0",
        "--optimizer.clip 0.01",
        "--optimizer.accumulate 2",
        "--optimizer.ema 0.5",
        "--data.batch_size 2",
        "--data.augment.scale_min 1",
        "--data.augment.scale_max 1",
        "--data.augment.flip 0",
        "--data.augment.blur 0",
        "--data.augment.jitter 1",
        "--model.dropout 0",
        "--precision bf16-mixed",
    ],
    ids=lambda flags: str(flags).split()[0].removeprefix("--"),
)
def test_every_setting_changes_the_result(
    baseline: Path, root: Path, tmp_path: Path, run_cli: RunCli, flags: str
) -> None:
    run = tmp_path / "run"
    command = train_command(root, run, "--epochs", "1", "--val_every", "0", *flags.split())
    check(run_cli(*command, *NO_REPORT, "--logger", "none"))
    assert not same_weights(baseline, run)


@pytest.mark.parametrize(
    "flags", ["--save_every 1", "--log_every 7", "--val_every 0", "--data.check false"]
)
def test_bookkeeping_does_not_change_the_result(
    baseline: Path, root: Path, tmp_path: Path, run_cli: RunCli, flags: str
) -> None:
    run = tmp_path / "run"
    check(run_cli(*train_command(root, run, "--epochs", "1", *flags.split()), *NO_REPORT))
    assert same_weights(baseline, run)


def test_adamw_is_adamw(teacher: Path, baseline: Path) -> None:
    assert "exp_avg" in next(iter(checkpoint_of(teacher)["optimizer"]["state"].values()))
    assert "momentum_buffer" in next(iter(checkpoint_of(baseline)["optimizer"]["state"].values()))


def test_head_and_backbone_rates(baseline: Path) -> None:
    groups = checkpoint_of(baseline)["optimizer"]["param_groups"]
    assert [group["base_lr"] for group in groups] == pytest.approx([0.007, 0.07])


def test_accumulated_steps_are_counted(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """3 epochs of 4 batches make 6 steps of 2; the checkpoint and the log agree."""
    run = tmp_path / "run"
    flags = ["--data.batch_size", "2", "--optimizer.accumulate", "2", "--epochs", "3"]
    check(run_cli(*train_command(root, run, *flags), *NO_REPORT))
    assert [line["step"] for line in train_lines(run)] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in train_lines(run)] == [0, 1, 1, 2, 2, 3]
    assert checkpoint_of(run)["progress"]["step"] == 6


PLAIN_SGD = (
    "--optimizer.momentum", "0", "--optimizer.weight_decay", "0", "--optimizer.power", "0",
    "--optimizer.head_lr_factor", "1", "--model.dropout", "0", "--val_every", "0",
)  # fmt: skip


def fresh_student(seed: int = 0) -> Segmenter:
    """The network that a run with ``seed`` starts from."""
    torch.manual_seed(seed)
    config = ModelConfig(**TINY_MODEL, dropout=0.0)
    return build_model(config, Classes(CLASS_NAMES, ((0, 0, 0),) * 3))


def test_accumulated_gradient_is_the_mean(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """One step of two batches moves the weights by the mean of the two gradients."""
    run = tmp_path / "run"
    flags = ["--optimizer.accumulate", "2", "--epochs", "1", "--optimizer.lr", "0.5"]
    check(run_cli(*train_command(root, run, *flags, *PLAIN_SGD), *NO_REPORT))
    model = fresh_student().train()
    before = {name: value.detach().clone() for name, value in model.net.named_parameters()}
    data = open_dataset("folder", str(root), "train")
    config = DataConfig(batch_size=4, workers=0, augment=AugmentConfig(crop=32))
    for batch in train_loader(data, config, plan_batches(len(data), config, 0, 1)):
        logits = resize(model(batch.image).logits, (32, 32), align_corners=True)
        loss = nn.functional.cross_entropy(logits, batch.mask.long(), ignore_index=255)
        (loss / 2).backward()
    trained = weights(run)
    for name, parameter in model.net.named_parameters():
        assert parameter.grad is not None
        step = before[name] - 0.5 * parameter.grad
        assert torch.allclose(trained[name], step, rtol=1e-4, atol=1e-5), name


def test_clipped_gradient(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """One step with rate 1 is as long as the largest norm that is allowed."""
    run = tmp_path / "run"
    flags = ["--data.batch_size", "8", "--epochs", "1", "--optimizer.lr", "1",
             "--optimizer.clip", "0.01"]  # fmt: skip
    check(run_cli(*train_command(root, run, *flags, *PLAIN_SGD), *NO_REPORT))
    trained = weights(run)
    moved = torch.cat(
        [(trained[n] - p.detach()).flatten() for n, p in fresh_student().net.named_parameters()]
    )
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-2)


def test_final_model_is_the_average(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """After two steps: 0.75 of the weights after the first, 0.25 of those after the second."""
    flags = ["--data.batch_size", "8", "--optimizer.lr", "0.1", *PLAIN_SGD]
    for name, more in {
        "one": ["--epochs", "1"],
        "two": ["--epochs", "2"],
        "average": ["--epochs", "2", "--optimizer.ema", "0.75"],
    }.items():
        check(run_cli(*train_command(root, tmp_path / name, *flags, *more), *NO_REPORT))
    one, two, average = (weights(tmp_path / name) for name in ("one", "two", "average"))
    for key, value in average.items():
        if value.is_floating_point():
            wanted = 0.75 * one[key] + 0.25 * two[key]
            assert torch.allclose(value, wanted, rtol=1e-4, atol=1e-6), key
    assert not same_weights(tmp_path / "two", tmp_path / "average")
    raw = checkpoint_of(tmp_path / "average")["distiller"]
    assert all(torch.equal(raw[f"student.net.{key}"], value) for key, value in two.items())
    # and it is what the metrics are of
    data = open_dataset("folder", str(root), "val")
    measured = evaluate(load_model(tmp_path / "average"), data).to_dict()
    result = result_of(tmp_path / "average")
    assert {name: result[name] for name in MEASURES} == measured


def test_start_from_a_trained_run(
    teacher: Path, root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    run = tmp_path / "run"
    flags = ["--model.weights", teacher, "--model.backbone", "mobilenetv2_035",
             "--optimizer.lr", "1e-12", "--epochs", "1"]  # fmt: skip
    check(run_cli(*train_command(root, run, *flags), *NO_REPORT))
    before, after = weights(teacher), weights(run)
    for name, _ in load_model(run).net.named_parameters():
        assert torch.allclose(before[name], after[name], atol=1e-6), name


def test_generated_data(tmp_path: Path, run_cli: RunCli) -> None:
    """The defaults of the data: digits, with options from the command line."""
    pytest.importorskip("sklearn", reason="the digits data needs scikit-learn")
    run = tmp_path / "run"
    options = "{size: 48, scenes: 4}"
    flags = ["--data.options", options, "--data.batch_size", "4", "--data.workers", "0",
             "--data.augment.crop", "32", "--epochs", "1", "--accelerator", "cpu"]  # fmt: skip
    check(run_cli("train", "--run", run, *flags, *model_flags("model"), *NO_REPORT))
    assert result_of(run)["images"] == 4
    assert len(result_of(run)["per_class_iou"]) == 11
    out = tmp_path / "metrics.json"
    check(run_cli("evaluate", run, "--data.options", options, "--json", out))
    assert json.loads(out.read_text())["miou"] == result_of(run)["miou"]
