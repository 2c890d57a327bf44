"""Tables of methods x seeds from run folders, with statistics worked out by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import RunCli

from aicsd.benchmark.statistics import percent
from aicsd.benchmark.table import group_runs, read_runs
from aicsd.config import build_config
from aicsd.methods import load_recipe
from aicsd.run_config import DistillConfig, TrainConfig
from aicsd.runs import RunFolder


def write_run(
    path: Path, method: str, seed: int, miou: float, metrics: dict[str, Any] | None = None,
    **keys: Any,
) -> Path:  # fmt: skip
    """A finished run with two classes, as ``aicsd distill`` leaves it."""
    terms = load_recipe(method, keys.pop("terms", {})).to_dict()
    keys = {"data": {"name": "camvid", "root": "camvid"}, **keys}
    config = build_config(
        DistillConfig, {"run": str(path), "method": method, "seed": seed, "terms": terms, **keys}
    )
    RunFolder(path).save_config(asdict(config))
    write_metrics(path, miou, metrics)
    return path


def write_metrics(path: Path, miou: float, metrics: dict[str, Any] | None = None) -> None:
    content = {
        "miou": miou, "class_accuracy": miou + 0.1, "images": 101, "parameters": 901739,
        "per_class_iou": {"sky": miou + 0.05, "pole": None}, **(metrics or {}),
    }  # fmt: skip
    (path / "metrics.json").write_text(json.dumps(content))


def teacher_of(method: str) -> dict[str, Any]:
    return {} if method == "none" else {"teacher": "runs/teacher"}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """none: 39, 40, 44 (mean 41, deviations -2 -1 3); aicsd: 40, 42, 44; kd: one seed of them."""
    figures = {"none": (0.39, 0.40, 0.44), "aicsd": (0.40, 0.42, 0.44), "kd": (0.41,)}
    return [
        write_run(tmp_path / f"{method}-{seed}", method, seed, miou, None, **teacher_of(method))
        for method, values in figures.items()
        for seed, miou in enumerate(values)
    ]  # fmt: skip


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def assert_one_line(result: tuple[int, str, str], *words: str) -> None:
    code, output, error = result
    assert code == 2
    assert not output
    assert error.startswith("aicsd: error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def table(run_cli: RunCli, *arguments: object) -> str:
    code, output, error = run_cli("benchmark", "table", *arguments)
    assert code == 0, error
    return output


def test_markdown(runs: list[Path], run_cli: RunCli) -> None:
    text = table(run_cli, *runs)
    header, rule, none, aicsd, kd = rows_of(text)
    assert header == [
        "method", "student", "images", "epochs", "n", "seeds", "mIoU % of each", "mIoU %",
        "class accuracy %", "parameters", "mIoU % minus none",
    ]  # fmt: skip
    assert set(rule) == {"---"}
    assert none[:6] == ["none", "mobilenetv2_050", "all", "50", "3", "0, 1, 2"]
    # sqrt((4 + 1 + 9) / 2) = 2.6458
    assert none[6:10] == ["39.00, 40.00, 44.00", "41.00 ± 2.65", "51.00 ± 2.65", "0.90 M"]
    assert none[10:] in ([], [""])
    # sqrt((4 + 0 + 4) / 2) = 2; differences by seed: 1, 2, 0
    assert aicsd[4:] == ["3", "0, 1, 2", "40.00, 42.00, 44.00", "42.00 ± 2.00", "52.00 ± 2.00",
                         "0.90 M", "+1.00 ± 1.00 (n = 3)"]  # fmt: skip
    # only the seed that both have: 41 - 39
    assert kd[4:] == ["1", "0", "41.00", "41.00", "51.00", "0.90 M", "+2.00 (n = 1)"]
    assert "Measured on camvid val, 101 images, protocol standard" in text
    assert "p-value" not in text


def test_the_order_of_the_runs_changes_the_order_of_rows_alone(
    runs: list[Path], run_cli: RunCli
) -> None:
    forward, backward = (rows_of(table(run_cli, *order)) for order in (runs, runs[::-1]))
    assert forward[2:] == backward[:1:-1]


def test_differences_pair_the_same_seeds(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"n{seed}", "none", seed, miou)
             for seed, miou in ((1, 0.50), (2, 0.30), (5, 0.10))]  # fmt: skip
    paths += [write_run(tmp_path / f"k{seed}", "kd", seed, miou)
              for seed, miou in ((5, 0.12), (7, 0.90), (1, 0.47))]  # fmt: skip
    none, kd = group_runs(read_runs(paths)[0])
    assert none.difference is None
    assert kd.seeds == [1, 5, 7]
    assert kd.difference is not None
    assert kd.difference.seeds == [1, 5]
    assert kd.difference.values == pytest.approx([-0.03, 0.02])


def test_no_shared_seed_no_difference(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a", "none", 0, 0.5), write_run(tmp_path / "b", "kd", 1, 0.6)]
    assert [group.difference for group in group_runs(read_runs(paths)[0])] == [None, None]


def test_another_baseline(runs: list[Path], run_cli: RunCli) -> None:
    rows = rows_of(table(run_cli, *runs, "--baseline", "kd"))
    assert rows[0][-1] == "mIoU % minus kd"
    assert rows[3][-1] == "-1.00 (n = 1)"
    assert_one_line(run_cli("benchmark", "table", *runs, "--baseline", "kdd"), "'kdd'", "'kd'")


def test_a_baseline_has_all_other_settings(tmp_path: Path) -> None:
    alone = write_run(tmp_path / "a", "none", 0, 0.5, epochs=10)
    other = write_run(tmp_path / "b", "kd", 0, 0.6, epochs=20, teacher="t")
    same = write_run(tmp_path / "c", "kd", 0, 0.7, epochs=10, teacher="t")
    groups = group_runs(read_runs([alone, other, same])[0])
    values = [None if g.difference is None else g.difference.values for g in groups]
    assert values == [None, None, pytest.approx([0.2])]


def test_runs_that_differ_in_more_than_the_seed_are_two_rows(
    tmp_path: Path, run_cli: RunCli
) -> None:
    paths = [
        write_run(tmp_path / "a0", "kd", 0, 0.4),
        write_run(tmp_path / "a1", "kd", 1, 0.5, data={"name": "camvid", "root": "elsewhere",
                                                       "workers": 7}, val_every=3),
        write_run(tmp_path / "b0", "kd", 0, 0.6, terms={"pixel_kd": {"weight": 7.0}}),
    ]  # fmt: skip
    header, _, first, second = rows_of(table(run_cli, *paths))
    assert header[4] == "settings"
    assert [first[4], first[5]] == ["terms.pixel_kd.weight = 5.0", "2"]
    assert [second[4], second[5]] == ["terms.pixel_kd.weight = 7.0", "1"]
    named = rows_of(table(run_cli, *paths, "--by", "method,terms.pixel_kd.weight"))
    assert named[0][:3] == ["method", "terms.pixel_kd.weight", "n"]
    assert [row[:3] for row in named[2:]] == [["kd", "5.0", "2"], ["kd", "7.0", "1"]]
    groups = group_runs(read_runs(paths)[0], ("method",))
    assert [len(group.runs) for group in groups] == [2, 1]
    misspelt = run_cli("benchmark", "table", *paths, "--by", "methd")
    assert_one_line(misspelt, "by: no run has a key 'methd'", "'method'")


def test_two_baselines_are_refused(tmp_path: Path, run_cli: RunCli) -> None:
    paths = [
        write_run(tmp_path / "a", "kd", 0, 0.4),
        write_run(tmp_path / "b", "kd", 0, 0.5, terms={"pixel_kd": {"weight": 7.0}}),
        write_run(tmp_path / "c", "aicsd", 0, 0.5),
    ]
    result = run_cli("benchmark", "table", *paths, "--baseline", "kd")
    assert_one_line(result, str(paths[0]), str(paths[1]), "terms.pixel_kd.weight")


def test_the_same_run_twice_is_refused(runs: list[Path], tmp_path: Path, run_cli: RunCli) -> None:
    again = write_run(tmp_path / "again", "aicsd", 1, 0.43, teacher="runs/teacher")
    result = run_cli("benchmark", "table", *runs, again)
    assert_one_line(result, "aicsd-1", str(again), "the same seed 1")


def test_unfinished_runs_are_named_and_left_out(
    runs: list[Path], tmp_path: Path, run_cli: RunCli
) -> None:
    (runs[0] / "metrics.json").unlink()
    code, output, error = run_cli("benchmark", "table", *runs)
    assert code == 0
    assert error == f"{runs[0]}: left out, the run has not finished\n"
    none = rows_of(output)[2]
    assert none[4:6] == ["2", "1, 2"]
    for run in runs[1:]:
        (run / "metrics.json").unlink()
    code, output, error = run_cli("benchmark", "table", *runs)
    assert (code, output) == (2, "")
    assert error.splitlines()[-1] == "aicsd: error: there is no finished run among the folders"


@pytest.mark.parametrize(
    ("keys", "metrics", "words"),
    [
        ({"data": {"name": "voc", "root": "camvid"}}, {}, ["data.name: camvid", "data.name: voc"]),
        ({"protocol": "released"}, {}, ["protocol: standard", "protocol: released"]),
        ({"data": {"name": "camvid", "val_split": "test"}}, {}, ["data.val_split: test"]),
        ({}, {"images": 100}, ["images: 101", "images: 100"]),
        ({}, {"per_class_iou": {"sky": 0.5}}, ["classes: sky, pole", "classes: sky)"]),
    ],
)
def test_runs_on_other_data_are_refused(
    runs: list[Path], tmp_path: Path, run_cli: RunCli, keys: dict[str, Any],
    metrics: dict[str, Any], words: list[str],
) -> None:  # fmt: skip
    other = write_run(tmp_path / "other", "kd", 1, 0.5, metrics, **keys)
    result = run_cli("benchmark", "table", *runs, other)
    assert_one_line(result, str(runs[0]), str(other), *words)


def test_generated_data_of_another_size_is_other_data(tmp_path: Path, run_cli: RunCli) -> None:
    paths = [
        write_run(tmp_path / str(size), "none", seed, 0.5,
                  data={"name": "digits", "options": {"size": size}})
        for seed, size in enumerate((96, 128))
    ]  # fmt: skip
    result = run_cli("benchmark", "table", *paths)
    assert_one_line(result, "data.options.size: 96", "data.options.size: 128")


@pytest.mark.parametrize("name", ["folder", "shards", "photos"])
def test_two_folders_are_two_datasets(tmp_path: Path, run_cli: RunCli, name: str) -> None:
    paths = [
        write_run(tmp_path / root, "none", seed, 0.5, data={"name": name, "root": root})
        for seed, root in enumerate(("mine", "yours"))
    ]
    assert_one_line(run_cli("benchmark", "table", *paths), "data.root: mine", "data.root: yours")


def test_masks_that_mean_something_else_are_other_data(tmp_path: Path, run_cli: RunCli) -> None:
    for seed, meaning in enumerate(("pole", "ignored")):
        options = {"mask_values": {0: "sky", 255: meaning}}
        data = {"name": "folder", "root": "mine", "options": options}
        write_run(tmp_path / str(seed), "none", seed, 0.5, data=data)
    result = run_cli("benchmark", "table", tmp_path / "0", tmp_path / "1")
    assert_one_line(result, "mask_values.255: pole", "mask_values.255: ignored")


def test_two_spellings_of_a_folder_are_one_dataset(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("data")
    runs, _ = read_runs(
        write_run(tmp_path / str(seed), "none", seed, 0.5,
                  data={"name": "folder", "root": f"{tmp_path}/{place}"})
        for seed, place in enumerate(("data", "data/", "link"))
    )  # fmt: skip
    assert group_runs(runs)[0].seeds == [0, 1, 2]


def test_training_without_a_teacher_is_the_same_by_both_commands(tmp_path: Path) -> None:
    distilled = write_run(tmp_path / "a", "none", 0, 0.5)
    trained = tmp_path / "b"
    keys = {"run": str(trained), "seed": 1, "data": {"name": "camvid", "root": "camvid"}}
    RunFolder(trained).save_config(asdict(build_config(TrainConfig, keys)))
    write_metrics(trained, 0.6)
    (group,) = group_runs(read_runs([distilled, trained])[0])
    assert group.seeds == [0, 1]
    assert group.names["method"] == "none"


def test_the_released_protocol_of_both_commands(tmp_path: Path) -> None:
    distilled = tmp_path / "a"
    recipe = load_recipe("none").with_numerics("released")
    common = {"data": {"name": "voc", "root": "voc"}, "protocol": "released"}
    keys = {"run": str(distilled), "method": "none", "terms": recipe.to_dict(), **common}
    RunFolder(distilled).save_config(asdict(build_config(DistillConfig, keys)))
    trained = tmp_path / "b"
    RunFolder(trained).save_config(
        asdict(build_config(TrainConfig, {"run": str(trained), "seed": 1, **common}))
    )
    for path in (distilled, trained):
        write_metrics(path, 0.5)
    (group,) = group_runs(read_runs([distilled, trained])[0])
    assert group.seeds == [0, 1]


def test_a_run_of_an_older_version_has_the_defaults(tmp_path: Path) -> None:
    new, old = (write_run(tmp_path / str(seed), "aicsd", seed, 0.5) for seed in (0, 1))
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["protocol"], config["optimizer"]["schedule"], config["student"]["released_layout"]
    for term in config["terms"].values():
        del term["at"]
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    (group,) = group_runs(read_runs([new, old])[0])
    assert group.seeds == [0, 1]
    config["terms"]["icsd"]["forgotten"] = 3  # a key that exists no longer: another experiment
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    groups = group_runs(read_runs([new, old])[0])
    assert len(groups) == 2
    assert groups[1].apart["terms.icsd.forgotten"] == 3


def test_a_student_with_a_term_that_needs_a_teacher_is_not_alone(tmp_path: Path) -> None:
    def taught(name: str, seed: int, teacher: str) -> Path:
        measured = {"teacher": {"miou": 0.6}}
        terms = {"pixel_kd": {"weight": 1.0}}
        return write_run(
            tmp_path / name, "none", seed, 0.5 + seed / 10, measured, terms=terms, teacher=teacher
        )

    alone = [write_run(tmp_path / f"a{seed}", "none", seed, 0.4) for seed in (0, 1)]
    runs = [*alone, taught("b0", 0, "one"), taught("b1", 1, "one"), taught("c0", 0, "two")]
    groups = group_runs(read_runs(runs)[0])
    assert [group.is_alone for group in groups] == [True, False, False]
    assert [group.seeds for group in groups] == [[0, 1], [0, 1], [0]]
    found = groups[1].difference
    assert found is not None
    assert found.values == pytest.approx([0.1, 0.2])
    assert groups[0].difference is None
    title, other = (RunFolder(run).read().title for run in (runs[0], runs[2]))
    assert (title, other) == ("student alone", "b0")


@pytest.mark.parametrize(
    ("student", "name"),
    [
        ({"backbone": "resnet18"}, "resnet18"),
        ({"family": "lraspp", "backbone": "resnet18"}, "lraspp resnet18"),
        ({"family": "torchvision:fcn_resnet50"}, "torchvision:fcn_resnet50"),
        ({"family": "module"}, "module"),
    ],
)
def test_a_student_is_called_by_its_network(
    student: dict[str, str], name: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", "none", 0, 0.4, student=student)
    (group,) = group_runs(read_runs([run])[0])
    assert group.names["student"] == name


def test_per_class(runs: list[Path], run_cli: RunCli) -> None:
    assert "sky" not in table(run_cli, *runs)
    rows = rows_of(table(run_cli, *runs, "--per_class", "true"))
    sky = next(row for row in rows if row[0] == "sky")
    pole = next(row for row in rows if row[0] == "pole")
    assert sky[1:] == ["46.00 ± 2.65", "47.00 ± 2.00", "46.00"]
    assert pole[1:] == ["-", "-", "-"]


def test_json(runs: list[Path], run_cli: RunCli, tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.json"
    assert table(run_cli, *runs, "--format", "json", "-o", out, "--per_class", "true") == ""
    content = json.loads(out.read_text())
    assert content["measured_on"]["data.name"] == "camvid"
    none, aicsd, kd = content["groups"]
    assert aicsd["method"] == "aicsd"
    assert aicsd["n"] == 3
    assert aicsd["runs"] == [str(run) for run in runs[3:6]]
    assert aicsd["miou"]["values"] == [0.40, 0.42, 0.44]
    assert aicsd["miou"]["mean"] == pytest.approx(0.42)
    assert aicsd["miou"]["std"] == pytest.approx(0.02)
    difference = aicsd["miou_difference"]
    assert difference["baseline"] == "none"
    assert difference["n"] == 3
    assert difference["values"] == pytest.approx([0.01, 0.02, 0.0])
    assert difference["std"] == pytest.approx(0.01)
    assert none["miou_difference"] is None
    assert kd["miou"]["std"] is None
    assert kd["per_class_iou"]["pole"] == {"values": [], "mean": None, "std": None}


def test_csv(runs: list[Path], run_cli: RunCli) -> None:
    text = table(run_cli, *runs, "--format", "csv", "--per_class", "true")
    none, aicsd, kd = csv.DictReader(io.StringIO(text))
    assert aicsd["method"] == "aicsd"
    assert aicsd["seeds"] == "0 1 2"
    assert float(aicsd["miou_mean"]) == pytest.approx(0.42)
    assert float(aicsd["miou_difference_std"]) == pytest.approx(0.01)
    assert aicsd["miou_difference_n"] == "3"
    assert float(aicsd["iou sky_mean"]) == pytest.approx(0.47)
    assert none["miou_difference_mean"] == kd["miou_std"] == kd["iou pole_mean"] == ""


def test_percent() -> None:
    assert percent([]) == "-"
    assert percent([0.5]) == "50.00"
    assert percent([0.1, 0.3]) == "20.00 ± 14.14"  # sqrt(2) * 10
    assert percent([0.001], "+") == "+0.10"


def test_broken_folders(runs: list[Path], tmp_path: Path, run_cli: RunCli) -> None:
    assert_one_line(run_cli("benchmark", "table", "nowhere"), "nowhere is not a run folder")
    assert_one_line(run_cli("benchmark", "table"), "missing: runs")
    (runs[0] / "metrics.json").write_text("{")
    assert_one_line(run_cli("benchmark", "table", *runs), str(runs[0]), "is damaged")
    (runs[0] / "metrics.json").write_text('{"miou": 0.3}')
    assert_one_line(run_cli("benchmark", "table", *runs), "has no class_accuracy")
    (runs[0] / "config.yaml").write_text("- 1\n")
    assert_one_line(run_cli("benchmark", "table", *runs), "is damaged")
    (runs[0] / "config.yaml").write_text("a: [1\n")
    assert_one_line(run_cli("benchmark", "table", *runs), "is damaged")
    result = run_cli("benchmark", "table", runs[1], "--format", "html")
    assert_one_line(result, "format", "html")
