"""A table of groups of runs as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, Literal

from aicsd.benchmark.statistics import percent
from aicsd.benchmark.table import Group

Format = Literal["markdown", "csv", "json"]


def render(groups: Sequence[Group], form: Format, per_class: bool) -> str:
    """The table of :func:`aicsd.benchmark.table.group_runs` as text that ends with a newline."""
    if form == "json":
        return json.dumps(_content(groups, per_class), indent=1, ensure_ascii=False) + "\n"
    if form == "csv":
        return _csv(groups, per_class)
    return _markdown(groups, per_class)


def _markdown(groups: Sequence[Group], per_class: bool) -> str:
    compared = next((group.difference for group in groups if group.difference), None)
    apart = any(group.apart for group in groups)
    header = [
        *groups[0].names,
        *(["settings"] if apart else []),
        "n",
        "seeds",
        "mIoU % of each",
        "mIoU %",
        "class accuracy %",
        "parameters",
        *([f"mIoU % minus {compared.baseline}"] if compared else []),
    ]
    rows = [header, ["---"] * len(header)]
    for group in groups:
        row = [*group.names.values()]
        if apart:
            row.append(", ".join(f"{key} = {value}" for key, value in group.apart.items()))
        row += [
            str(len(group.runs)),
            ", ".join(map(str, group.seeds)),
            ", ".join(percent([value]) for value in group.values("miou")) or "-",
            percent(group.values("miou")),
            percent(group.values("class_accuracy")),
            f"{group.runs[0].metrics['parameters'] / 1e6:.2f} M",
        ]
        if compared:
            row.append(_difference(group))
        rows.append(row)
    text = _lines(rows)
    if per_class:
        text += "\n" + _per_class(groups)
    return f"{text}\n{_footer(groups)}\n"


def _difference(group: Group) -> str:
    if group.difference is None:
        return ""
    return f"{percent(group.difference.values, '+')} (n = {len(group.difference.values)})"


def _per_class(groups: Sequence[Group]) -> str:
    """Rows are classes here, for there are more of them than groups."""
    titles = []
    for group in groups:
        apart = [f"{key} = {value}" for key, value in group.apart.items()]
        titles.append(" ".join([*group.names.values(), *apart]))
    header = ["IoU %", *titles]
    classes = groups[0].runs[0].metrics["per_class_iou"]
    rows = [[name, *(percent(group.class_iou(name)) for group in groups)] for name in classes]
    return _lines([header, ["---"] * len(header), *rows])


def _lines(rows: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |\n" for row in rows)


def _footer(groups: Sequence[Group]) -> str:
    measured = groups[0].runs[0].measured_on
    text = (
        f"Measured on {measured['data.name']} {measured['data.val_split']}, {measured['images']} "
        f"images, protocol {measured['protocol']}. n: runs that differ in the seed alone; "
        "± is their sample standard deviation."
    )
    if "labels" in measured:
        text += f" No image has labels: mIoU is the agreement with the {measured['labels']}."
    if any(group.difference for group in groups):
        text += " Differences are taken seed by seed; n: seeds that both have."
    return text


def _content(groups: Sequence[Group], per_class: bool) -> dict[str, Any]:
    return {
        "measured_on": groups[0].runs[0].measured_on,
        "groups": [_group(group, per_class) for group in groups],
    }


def _group(group: Group, per_class: bool) -> dict[str, Any]:
    difference = group.difference
    content: dict[str, Any] = {
        **group.names,
        "settings": group.apart,
        "n": len(group.runs),
        "seeds": group.seeds,
        "runs": [str(run.path) for run in group.runs],
        "miou": _statistic(group.values("miou")),
        "class_accuracy": _statistic(group.values("class_accuracy")),
        "parameters": group.runs[0].metrics["parameters"],
        "miou_difference": None
        if difference is None
        else {
            "baseline": difference.baseline,
            "n": len(difference.values),
            "seeds": difference.seeds,
            **_statistic(difference.values),
        },
    }
    if per_class:
        names = group.runs[0].metrics["per_class_iou"]
        content["per_class_iou"] = {name: _statistic(group.class_iou(name)) for name in names}
    return content


def _statistic(values: Sequence[float]) -> dict[str, Any]:
    return {
        "values": list(values),
        "mean": mean(values) if values else None,
        "std": stdev(values) if len(values) > 1 else None,
    }


def _csv(groups: Sequence[Group], per_class: bool) -> str:
    """One row a group, fractions as in JSON; empty where there is no number."""
    rows = []
    for group in groups:
        content = _group(group, per_class)
        difference = content["miou_difference"] or {}
        row = {
            **group.names,
            "settings": "; ".join(f"{key}={value}" for key, value in group.apart.items()),
            "n": content["n"],
            "seeds": " ".join(map(str, group.seeds)),
        }
        columns = {"miou": content["miou"], "class_accuracy": content["class_accuracy"]}
        columns["miou_difference"] = difference
        for name, statistic in content.get("per_class_iou", {}).items():
            columns[f"iou {name}"] = statistic
        for name, statistic in columns.items():
            row |= {f"{name}_{key}": statistic.get(key) for key in ("mean", "std")}
        row |= {"miou_difference_n": difference.get("n"), "parameters": content["parameters"]}
        rows.append(row)
    return csv_text(rows)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as CSV, their names first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
