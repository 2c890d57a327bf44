"""The report: what it says, what it holds, and that it never breaks a run."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TINY_MODEL
from tiny_runs import distill_command, train_command
from torch import nn

from aicsd.data import Classes, open_dataset
from aicsd.evaluation.cost import measure_costs
from aicsd.models import ModelConfig, Segmenter, build_model
from aicsd.runs import FinishedRun, RunFolder
from aicsd.visualization.report import verdict, write_report
from aicsd.visualization.runs import Network

RunCli = Callable[..., tuple[int, str, str]]


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
    order = ["Did it work?", "Where?", "How does it look?", "Why?", "How to repeat it"]
    places = [text.rindex(question) for question in order]
    assert places == sorted(places)
    for run in ("alone", "distilled"):
        assert f"{100 * result_of(runs / run)['class_accuracy']:.1f}" in text
    gain = 100 * (result_of(runs / "distilled")["miou"] - result_of(runs / "alone")["miou"])
    assert f"{gain:+.1f} points against student alone" in text
    assert text.index("student alone:") < text.index("student AICSD:")
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

    monkeypatch.setattr("aicsd.engine.run.write_report", fail)
    run = tmp_path / "run"
    command = distill_command(runs / "data", runs / "teacher", run, "--epochs", "1")
    code, _, error = run_cli(*command)
    assert code == 0
    told = [line for line in error.splitlines() if "report.html" in line]
    assert told == ["run: no report.html: RuntimeError two lines"]
    assert (run / "model.safetensors").is_file()
    assert not (run / "report.html").exists()


def test_no_images_is_a_line_not_a_failure(runs: Path, tmp_path: Path) -> None:
    class Empty:
        def __init__(self, classes: Classes) -> None:
            self.classes, self.names = classes, list[str]()

        def __len__(self) -> int:
            return 0

        def read(self, index: int) -> object:
            raise AssertionError(index)

    classes = open_dataset("folder", str(runs / "data"), "val", {}).classes
    files = RunFolder(runs / "alone").read()
    out = tmp_path / "report.html"
    write_report(out, [Network(files.title, None, files.result, files)], Empty(classes))
    assert "The split has no images to show." in Page(out).text


def test_old_runs_without_a_confusion_matrix(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run, out = tmp_path / "run", tmp_path / "report.html"
    shutil.copytree(runs / "teacher", run)
    values = json.loads((run / "metrics.json").read_text())
    for key in ("confusion", "per_class_accuracy", "teacher"):
        values.pop(key)
    (run / "metrics.json").write_text(json.dumps(values))
    assert run_cli("report", run, "-o", out)[0] == 0
    assert "no confusion matrix" in Page(out).text
    assert run_cli("report", run, "-o", out, "--evaluate", "true")[0] == 0
    assert "no confusion matrix" not in Page(out).text
    assert f"{100 * values['miou']:.1f}" in Page(out).text


def test_evaluate_measures_on_the_data_given(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    measured, out = tmp_path / "metrics.json", tmp_path / "report.html"
    flags = ("--data.name", "folder", "--data.root", runs / "data", "--data.split", "train")
    assert run_cli("evaluate", runs / "alone", *flags, "--json", measured)[0] == 0
    code, _, error = run_cli("report", runs / "alone", *flags, "-o", out, "--evaluate", "true")
    assert code == 0, error
    values = json.loads(measured.read_text())
    assert f"student alone: {100 * values['miou']:.1f} % mIoU" in Page(out).text


def test_confusion_in_the_result(runs: Path) -> None:
    values = json.loads((runs / "alone" / "metrics.json").read_text())
    matrix = torch.tensor(values["confusion"])
    assert int(matrix.sum()) == 4 * (48 - 2) * 64  # two rows of every mask have no label
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert float(iou.nanmean()) == pytest.approx(values["miou"])
    text = (runs / "alone" / "metrics.json").read_text()
    assert f"{json.dumps(values['confusion'][0], separators=(',', ':'))}" in text  # one line


def test_seeds_of_one_method_have_their_own_names(
    runs: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    for seed in (1, 2):
        shutil.copytree(runs / "distilled", tmp_path / f"seed{seed}")
    out = tmp_path / "report.html"
    code, _, error = run_cli("report", tmp_path / "seed1", tmp_path / "seed2", "-o", out)
    assert code == 0, error
    for seed in (1, 2):
        assert f"student AICSD (seed{seed}):" in Page(out).text


def network(title: str, miou: float, method: str | None, *, is_teacher: bool = False) -> Network:
    config = {} if method is None else {"student": {}, "method": method}
    return Network(
        title, None, {"miou": miou}, FinishedRun(Path(title), config, {}, []), is_teacher
    )


def test_verdict_by_hand() -> None:
    teacher = network("teacher", 0.8, None, is_teacher=True)
    alone, better = network("alone", 0.5, "none"), network("better", 0.56, "aicsd")
    sentences = verdict([teacher, alone, better])
    assert sentences[0] == "alone: 50.0 % mIoU, -30.0 points against the teacher."
    assert sentences[1] == (
        "better: 56.0 % mIoU, +6.0 points against alone, 20 % of its gap to the teacher."
    )
    assert "seeds" in sentences[2]
    worse = network("worse", 0.4, "aicsd")
    assert verdict([teacher, alone, worse])[1] == "worse: 40.0 % mIoU, -10.0 points against alone."
    assert verdict([better]) == ["better: 56.0 % mIoU."]
    assert verdict([teacher, better]) == ["better: 56.0 % mIoU, -24.0 points against the teacher."]


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
