"""The demo and the scripts behind the documented results, shortened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from aicsd.methods import load_recipe

SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_demo_makes_a_table_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits data needs scikit-learn")
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, SCRIPTS / "demo.py", "--out", out, "--epochs", "1", "--scenes", "16"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for name in ("teacher", "student alone", "student AICSD", "mIoU", "class accuracy"):
        assert name in result.stdout
    for run in ("teacher", "alone", "aicsd"):
        assert json.loads((out / run / "metrics.json").read_text())["images"] == 16
    with Image.open(out / "demo.png") as picture:
        assert picture.width > picture.height > 300


def test_camvid_table_from_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import camvid_results as script

    runs, results = tmp_path / "runs", tmp_path / "results"
    for name, miou in (("teacher", 0.6), ("mobilenetv2_050-none-0", 0.3),
                       ("mobilenetv2_050-none-1", 0.4)):  # fmt: skip
        (runs / name).mkdir(parents=True)
        values = {"miou": miou, "class_accuracy": 0.5, "seconds": 60.0, "parameters": 1_000_000,
                  "teacher": None}  # fmt: skip
        (runs / name / "metrics.json").write_text(json.dumps(values))
        (runs / name / "config.yaml").write_text("epochs: 7\n")
        script.keep(runs / name, results)
    names = [student.run(method, seed) for student in script.STUDENTS
             for method in student.methods for seed in range(student.seeds)]  # fmt: skip
    names += [trial.run for trial in script.TRIALS]
    assert len(set(names)) == len(names)
    trial = script.TRIALS[0]
    for name, weight, miou in ((script.STUDENTS[0].run(trial.method, 0), 1.0, 0.25),
                               (trial.run, 5.0, 0.125)):  # fmt: skip
        (runs / name).mkdir(parents=True)
        (runs / name / "metrics.json").write_text(json.dumps({**values, "miou": miou}))
        (runs / name / "config.yaml").write_text(
            f"epochs: 7\nterms: {{pixel_kd: {{weight: {weight}}}}}\n"
        )
        script.keep(runs / name, results)
    script.keep(runs / "mobilenetv2_050-none-2", results)  # has not finished
    assert len(list(results.iterdir())) == 5
    rows = script.table(results).splitlines()
    assert len(rows) == 5
    assert "| 7 | 60.00 |" in rows[2]
    assert "| none | 2 |" in rows[3]
    assert "35.00 ± 7.07" in rows[3]
    assert (
        script.trials(results).splitlines()[2] == "| kd | pixel_kd 1 | 25.00 | pixel_kd 5 | 12.50 |"
    )


def test_the_camvid_page_shows_the_kept_metrics() -> None:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import camvid_results as script
    finally:
        sys.path.remove(str(SCRIPTS))
    page = script.PAGE.read_text(encoding="utf-8")
    results = script.PAGE.parent / "camvid"
    assert script.put(page, "table", script.table(results)) == page
    assert script.put(page, "trials", script.trials(results)) == page
    for trial in script.TRIALS:
        recipe = load_recipe(trial.method).terms
        for seed in range(3):
            kept = results / f"{script.STUDENTS[0].run(trial.method, seed)}.json"
            if kept.is_file():
                weights = json.loads(kept.read_text())["weights"]
                assert weights == {name: term.weight for name, term in recipe.items()}, kept
