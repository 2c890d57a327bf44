"""The report: what it says, what it holds, and that it never breaks a run."""

from __future__ import annotations

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY_MODEL, RunCli
from tiny_runs import distill_command, train_command
from torch import nn

from aicsd.benchmark.compared import compare_networks
from aicsd.benchmark.statistics import Gain, Interval
from aicsd.data import Classes, Sample, SegDataset, open_dataset
from aicsd.evaluation.cost import measure_costs
from aicsd.models import ModelConfig, Segmenter, build_model
from aicsd.runs import FinishedRun, RunFolder
from aicsd.visualization.entries import ReportEntry, each_alone
from aicsd.visualization.report import write_report
from aicsd.visualization.runs import Network, open_networks
from aicsd.visualization.verdict import verdict


class Page(HTMLParser):
    """Texts, tags and addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.addresses += [v or "" for k, v in attributes if k in ("src", "href", "action")]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += f" {data}"


def result_of(run: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return values


def test_every_run_leaves_one(runs: Path) -> None:
    for name in ("teacher", "alone", "distilled"):
        page = Page(runs / name / "report.html")
        assert f"{100 * result_of(runs / name)['miou']:.1f}" in page.text
        assert "How to repeat it" in page.text
        assert f"--config {runs / name / 'config.yaml'}" in page.text
    assert "teacher" in Page(runs / "distilled" / "report.html").text


def test_comparison(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    out = tmp_path / "report.html"
    code, printed, error = run_cli("report", runs / "distilled", runs / "alone", "-o", out)
    assert code == 0, error
    assert printed.startswith(str(out))
    assert out.stat().st_size < 3e6
    page = Page(out)
    text = " ".join(page.text.split())
    order = ["Did it work?", "How does it look?", "Where?", "Why?", "How to repeat it"]
    places = [text.rindex(question) for question in order]
    assert places == sorted(places)
    for run in ("alone", "distilled"):
        assert f"{100 * result_of(runs / run)['class_accuracy']:.1f}" in text
    gain = 100 * (result_of(runs / "distilled")["miou"] - result_of(runs / "alone")["miou"])
    assert f"{gain:+.1f} points against student alone" in text
    assert text.index("student alone:") < text.index("student AICSD:")
    assert "Measured on data, split val, 4 images. Pictures: 4 of the 4 images." in text
    assert "Not sure: one seed." in text
    for name in ("ground", "disc", "bar", "003"):
        assert name in text
    # nothing is fetched: pictures are inside, links stay on the page
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.tags.count("img") == 2 + 4 * (2 + 3 + 3)


def test_a_hostile_name_is_only_text(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    evil = '<img src=x onerror="alert(1)">\'</script><script>alert(2)</script>'
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(runs / "data", data)
    (data / "classes.txt").write_text(f"ground\n{evil}\nbar\n")
    assert run_cli(*train_command(data, run, "--epochs", "1"))[0] == 0
    page = Page(run / "report.html")
    assert "x" not in page.addresses
    assert page.tags.count("script") == 2
    assert evil in page.text
    shown = re.findall(r"data-map='([^']*)'", (run / "report.html").read_text())
    assert all(len(json.loads(values)) == 3 for values in shown)
    assert shown


def test_a_report_that_fails_does_not_fail_the_run(
    runs: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("aicsd.engine.run_report.write_report", fail)
    run = tmp_path / "run"
    command = distill_command(runs / "data", runs / "teacher", run, "--epochs", "1")
    code, _, error = run_cli(*command)
    assert code == 0
    told = [line for line in error.splitlines() if "report.html" in line]
    assert told == ["run: no report.html: RuntimeError two lines"]
    assert (run / "model.safetensors").is_file()
    assert not (run / "report.html").exists()


def test_no_images_is_a_line_not_a_failure(runs: Path, tmp_path: Path) -> None:
    class Empty(SegDataset):
        def __init__(self, classes: Classes) -> None:
            self.classes, self.names = classes, list[str]()

        def __len__(self) -> int:
            return 0

        def read(self, index: int) -> Sample:
            raise AssertionError(index)

    classes = open_dataset("folder", str(runs / "data"), "val", {}).classes
    files = RunFolder(runs / "alone").read()
    out = tmp_path / "report.html"
    networks = [Network(files.title, None, files.result, files)]
    write_report(out, each_alone(networks), Empty(classes))
    assert "The split has no images to show." in Page(out).text


def test_old_runs_without_a_confusion_matrix(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run, out = tmp_path / "run", tmp_path / "report.html"
    shutil.copytree(runs / "teacher", run)
    values = json.loads((run / "metrics.json").read_text())
    for key in ("confusion", "per_class_accuracy", "teacher"):
        values.pop(key)
    (run / "metrics.json").write_text(json.dumps(values))
    command = ("report", run, "-o", out, "--images", 1)
    assert run_cli(*command)[0] == 0
    assert "no confusion matrix" in Page(out).text
    assert run_cli(*command, "--evaluate", "true")[0] == 0
    assert "no confusion matrix" not in Page(out).text
    assert f"{100 * values['miou']:.1f}" in Page(out).text


def test_evaluate_measures_on_the_data_given(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    measured, out = tmp_path / "metrics.json", tmp_path / "report.html"
    flags = ("--data.name", "folder", "--data.root", runs / "data", "--data.split", "train")
    assert run_cli("evaluate", runs / "alone", *flags, "--json", measured)[0] == 0
    code, _, error = run_cli("report", runs / "alone", *flags, "-o", out, "--evaluate", "true")
    assert code == 0, error
    values = json.loads(measured.read_text())
    text = Page(out).text
    assert f"student alone: {100 * values['miou']:.1f} % mIoU" in text
    assert "Measured on data, split train, 8 images. Pictures: 6 of the 8 images." in text


def test_confusion_in_the_result(runs: Path) -> None:
    values = json.loads((runs / "alone" / "metrics.json").read_text())
    matrix = torch.tensor(values["confusion"])
    assert int(matrix.sum()) == 4 * (48 - 2) * 64  # two rows of every mask have no label
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert float(iou.nanmean()) == pytest.approx(values["miou"])
    text = (runs / "alone" / "metrics.json").read_text()
    assert f"{json.dumps(values['confusion'][0], separators=(',', ':'))}" in text  # one line


def copy_run(source: Path, path: Path, seed: int, miou: float, **keys: object) -> Path:
    """A run as ``source`` with another seed, result and settings."""
    shutil.copytree(source, path)
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**config, "seed": seed, **keys}))
    result = json.loads((path / "metrics.json").read_text())
    (path / "metrics.json").write_text(json.dumps({**result, "miou": miou}))
    (path / "image_counts.safetensors").unlink()
    return path


SCORES = {"alone": (0.40, 0.44, 0.39), "distilled": (0.43, 0.46, 0.44)}
"""Differences by seed: 3, 2 and 5 points; mean 3.33, standard deviation 1.53."""


@pytest.fixture(scope="module")
def seeds(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of two methods, in folders whose names say nothing."""
    place = tmp_path_factory.mktemp("seeds")
    for method, scores in SCORES.items():
        for seed, miou in enumerate(scores):
            copy_run(runs / method, place / f"{method[0]}{seed}", seed, miou)
    return place


def test_seeds_are_one_row_and_differences_are_paired_as_in_the_table(
    seeds: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    out = tmp_path / "report.html"
    folders = sorted(seeds.iterdir(), reverse=True)
    code, _, error = run_cli("report", *folders, "-o", out)
    assert code == 0, error
    text = " ".join(Page(out).text.split())
    assert "student alone 0, 1, 2 41.0 ± 2.6" in text
    assert "student AICSD: 44.3 ± 1.5 % mIoU over 3 seeds, +3.3 points" in text
    # 3.33 -+ 4.303 * 1.53 / sqrt(3), Student's t with two degrees of freedom
    interval = re.search(r"95 % interval ([+-][\d.]+) to ([+-][\d.]+), 3 pairs", text)
    assert interval is not None
    assert [float(bound) for bound in interval.groups()] == pytest.approx([-0.5, 7.1], abs=0.2)
    assert "Not clear: the interval holds 0. A gain of this size needs about 4 seeds" in text
    code, table, error = run_cli("benchmark", "table", *folders)
    assert code == 0, error
    assert "+3.33 ± 1.53 (n = 3)" in table
    for seed in range(3):
        assert f"student AICSD, seed {seed}" in text  # how to repeat it
    page = Page(out)
    assert page.tags.count("img") == 2 + 4 * (2 + 3 + 3)  # one student of each setting is shown


def test_runs_are_named_by_what_differs(runs: Path, tmp_path: Path) -> None:
    classes = open_dataset("folder", str(runs / "data"), "val", {}).classes
    first = copy_run(runs / "distilled", tmp_path / "x", 0, 0.5)
    other = copy_run(runs / "distilled", tmp_path / "y", 1, 0.5, epochs=7, log_every=3)
    more = copy_run(runs / "distilled", tmp_path / "z", 2, 0.5, epochs=7)
    read = [RunFolder(path).read() for path in (first, other, more)]
    networks, _ = open_networks(read, None, classes)
    assert [net.title for net in networks] == [
        "teacher",
        "student AICSD, epochs 2",
        "student AICSD, epochs 7, seed 1",
        "student AICSD, epochs 7, seed 2",
    ]
    settings, notes = compare_networks(networks)
    assert not notes
    titles = ["teacher", "student AICSD, epochs 2", "student AICSD, epochs 7"]
    assert [setting.title for setting in settings] == titles
    networks, _ = open_networks([read[0], read[0]], None, classes)
    assert networks[1].title == "student AICSD, seed 0 (x)"  # nothing else tells them apart
    settings, notes = compare_networks(networks)
    assert len(settings) == 3
    assert "the same experiment with the same seed" in notes[0]


def test_what_is_not_compared_is_said(runs: Path, tmp_path: Path) -> None:
    classes = open_dataset("folder", str(runs / "data"), "val", {}).classes
    alone = copy_run(runs / "alone", tmp_path / "a", 0, 0.5)
    longer = copy_run(runs / "distilled", tmp_path / "d", 0, 0.5, epochs=7)
    other = copy_run(runs / "distilled", tmp_path / "e", 1, 0.5)
    read = [RunFolder(path).read() for path in (alone, longer, other)]
    settings, notes = compare_networks(open_networks(read, None, classes)[0])
    assert notes == [
        "student AICSD, epochs 7 differs from student alone in more than the method (epochs): its "
        "difference is that of all of it.",
        "student AICSD, epochs 2 is not compared with the student alone: no seed is in both.",
    ]
    _, _, first, second = settings
    assert first.gain is not None
    assert first.gain.values == [0.0]
    assert second.gain is None
    more = copy_run(runs / "alone", tmp_path / "b", 0, 0.5, epochs=3)
    read = [RunFolder(path).read() for path in (alone, more, longer)]
    settings, notes = compare_networks(open_networks(read, None, classes)[0])
    assert settings[-1].gain is None  # with which of the two is not clear
    assert notes == [
        "student AICSD is not compared with the student alone: their settings differ too (epochs)."
    ]


def test_class_gains_are_paired_by_seed(runs: Path, tmp_path: Path) -> None:
    """Seed 1 of the student alone is missing: its partner has no part in the difference."""
    classes = open_dataset("folder", str(runs / "data"), "val", {}).classes
    paths = [copy_run(runs / "alone", tmp_path / "a0", 0, 0.4)]
    paths += [copy_run(runs / "distilled", tmp_path / f"d{n}", n, 0.5 + n / 5) for n in range(2)]
    for path, iou in zip(paths, (0.2, 0.5, 0.9), strict=True):
        result = json.loads((path / "metrics.json").read_text())
        result["per_class_iou"]["disc"] = iou
        (path / "metrics.json").write_text(json.dumps(result))
    networks, _ = open_networks([RunFolder(path).read() for path in paths], None, classes)
    *_, distilled = compare_networks(networks)[0]
    assert distilled.gain is not None
    assert distilled.gain.values == pytest.approx([0.1])
    assert distilled.class_gain("disc") == pytest.approx(0.3)
    assert distilled.class_iou("disc") == pytest.approx(0.7)


def test_image_counts_widen_the_interval(seeds: Path, runs: Path) -> None:
    classes = open_dataset("folder", str(runs / "data"), "val", {}).classes
    read = [RunFolder(path).read() for path in sorted(seeds.iterdir())]
    networks, _ = open_networks(read, None, classes)
    assert networks[1].run is not None
    *_, without = compare_networks(networks)[0]
    for net in networks[1:]:
        assert net.run is not None
        source = runs / ("alone" if net.run.is_alone else "distilled")
        shutil.copy(source / "image_counts.safetensors", net.run.path)
    *_, counted = compare_networks(networks)[0]
    *_, anew = compare_networks(networks, remeasured=True)[0]
    (seeds / "a1" / "image_counts.safetensors").write_bytes(b"damaged")
    *_, damaged = compare_networks(networks)[0]
    for path in seeds.glob("*/image_counts.safetensors"):
        path.unlink()
    assert without.gain is not None
    assert counted.gain is not None
    assert anew.gain is not None
    assert (without.gain.over_images, counted.gain.over_images) == (False, True)
    assert counted.gain.images_alone is not None
    assert damaged.gain == without.gain
    assert anew.gain == without.gain  # counts of the training do not belong to new figures


def network(title: str, miou: float, method: str | None, *, is_teacher: bool = False) -> Network:
    config = {} if method is None else {"student": {}, "method": method}
    return Network(
        title, None, {"miou": miou}, FinishedRun(Path(title), config, {}, []), is_teacher
    )


def against(net: Network, base: Network, gain: Gain | None = None) -> ReportEntry:
    difference = net.metrics["miou"] - base.metrics["miou"]
    return ReportEntry(net.title, (net,), gain or Gain(base.title, [difference], None, False),
                   ((net, base),))  # fmt: skip


def test_verdict_by_hand() -> None:
    teacher = network("teacher", 0.8, None, is_teacher=True)
    alone, better = network("alone", 0.5, "none"), network("better", 0.56, "aicsd")
    settings = [*each_alone([teacher, alone]), against(better, alone)]
    assert verdict(settings) == [
        "Headroom: 30.0 points (teacher 80.0 %, alone 50.0 % mIoU).",
        "alone: 50.0 % mIoU.",
        "better: 56.0 % mIoU, +6.0 points against alone, 20 % of the headroom.",
        # 7.85 * (2 * 0.5^2) / 6^2 + 1.92 = 2.03
        "Not sure: one seed. A gain of this size needs about 3 seeds of each to be clear, if mIoU "
        "has a standard deviation of 0.5 points between seeds.",
    ]
    worse = against(network("worse", 0.4, "aicsd"), alone)
    assert "worse: 40.0 % mIoU, -10.0 points against alone." in verdict([settings[0], worse])
    poor = each_alone([network("teacher", 0.3, None, is_teacher=True), alone])
    assert "nothing to gain" in verdict([*poor, worse])[0]
    assert verdict(each_alone([better])) == ["better: 56.0 % mIoU."]
    assert verdict(each_alone([teacher, better])) == [
        "better: 56.0 % mIoU, -24.0 points against the teacher."
    ]
    assert "compare it with" in verdict(each_alone([alone, better]))[1]


def test_certainty_by_hand() -> None:
    alone, better = network("alone", 0.5, "none"), network("better", 0.53, "aicsd")

    def said(interval: Interval, images: Interval | None = None) -> str:
        gain = Gain("alone", [0.02, 0.04], interval, images is not None, images)
        return verdict([against(better, alone, gain)])[-1]

    assert said(Interval(0.01, 0.05)) == "Clear: the interval over 2 seeds does not hold 0."
    # 7.85 * (1.41 / 3)^2 + 1.92 = 3.67
    assert "needs about 4 seeds of each" in said(Interval(-0.01, 0.07))
    text = said(Interval(-0.05, 0.11), Interval(-0.02, 0.08))
    assert "more seeds alone would not" in text


def test_cost_by_hand() -> None:
    classes = Classes(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    model = Segmenter(nn.Conv2d(3, 2, 3, padding=1, bias=False), classes)
    cost = measure_costs({"model": model}, 10, 20)["model"]
    assert cost.gmacs == pytest.approx(10 * 20 * 3 * 2 * 9 / 1e9)
    assert cost.parameters == 3 * 2 * 9
    assert (cost.height, cost.width, cost.device) == (10, 20, "cpu")
    assert cost.milliseconds > 0
    assert model.training  # as it was


def test_cost_leaves_the_network_alone() -> None:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(**TINY_MODEL), Classes(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    ).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measure_costs({"model": model}, 32, 32)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_config_in_the_page_repeats_the_run(runs: Path) -> None:
    text = (runs / "distilled" / "report.html").read_text()
    shown = re.search(r"<summary>config.yaml</summary><pre>(.*?)</pre>", text, re.DOTALL)
    assert shown is not None
    config = yaml.safe_load((runs / "distilled" / "config.yaml").read_text())
    assert yaml.safe_load(html.unescape(shown[1])) == config
