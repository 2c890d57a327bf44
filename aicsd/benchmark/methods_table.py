"""The table of a benchmark: gains over the student alone, with intervals, against cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from aicsd.benchmark.methods import Key
from aicsd.benchmark.methods_results import CellResult, Results, step_time
from aicsd.benchmark.statistics import Floats, Gain, gain_over, resampled


@dataclass(frozen=True)
class Line:
    """A row of the table, for one student.

    Args:
        student: name in the benchmark.
        row: name in the benchmark.
        seeds: finished seeds.
        miou: fraction, one a seed in which a pixel with a label was there to measure it.
        class_accuracy: fraction, as miou.
        epochs: number of epochs of one training.
        parameters: number of parameters of the network.
        gain: over the row that it is compared to.
        recovered: the gain as a share of the headroom, the teacher's mIoU less that of the
            compared row; None without a headroom.
        at_equal_time: gain over the student alone that trained for as long.
        cost: time of a step over that of the baseline.
    """

    student: str
    row: str
    seeds: list[int]
    miou: list[float]
    class_accuracy: list[float]
    epochs: int
    parameters: int
    gain: Gain | None
    recovered: float | None
    at_equal_time: Gain | None
    cost: float | None


class Statistics:
    """Lines of a table; what was resampled is kept for the next table.

    Args:
        results: finished cells.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self._resampled: dict[int, tuple[CellResult, Floats]] = {}

    def lines(self) -> list[Line]:
        """A line for each row that has a finished cell, student by student."""
        shown = self.results.shown
        alone = {row["equal_time_of"]: row["name"] for row in shown["rows"] if row["equal_time_of"]}
        found = []
        for student in shown["students"]:
            for row in shown["rows"]:
                line = self._line(student, row["name"], row["compare_to"], alone.get(row["name"]))
                found += [line] if line is not None else []
        return found

    def trials(self) -> list[tuple[str, str, dict[str, float], float | None]]:
        """Student, row, weights and mIoU of the short trainings by which weights were chosen."""
        rows = {row["name"] for row in self.results.shown["rows"]}
        return [
            (key.student, key.row, cell.figures["weights"], cell.figures["miou"])
            for key, cell in self.results.cells.items()
            if key.row not in rows
        ]

    def missing(self) -> list[str]:
        """Student, row and seeds of the cells without a result."""
        shown = self.results.shown
        found = []
        for student in shown["students"]:
            for row in shown["rows"]:
                done = self._cells(student, row["name"])
                seeds = ", ".join(str(seed) for seed in shown["seeds"] if seed not in done)
                if seeds:
                    word = "seeds" if "," in seeds else "seed"
                    found.append(f"{student} {row['name']} ({word} {seeds})")
        return found

    def teachers(self, student: str, row: str | None = None) -> list[float]:
        """mIoU of the teachers of a student's cells, or of one row, each once, as a fraction.

        They are equal to a hundredth of a percent: one teacher scores differently in the last
        digits, live, from a cache, in 16 bits.
        """
        cells = [
            cell
            for key, cell in self.results.cells.items()
            if key.student == student and row in (None, key.row)
        ]
        scores = (cell.figures["teacher_miou"] for cell in cells)
        return sorted({round(score, 4) for score in scores if score is not None})

    def _cells(self, student: str, row: str) -> dict[int, CellResult]:
        cells = self.results.cells
        keys = [Key(student, row, seed) for seed in self.results.shown["seeds"]]
        return {key.seed: cells[key] for key in keys if key in cells}

    def _line(
        self, student: str, row: str, compare_to: str | None, alone: str | None
    ) -> Line | None:
        cells = self._cells(student, row)
        if not cells:
            return None
        first = next(iter(cells.values())).figures
        others = {} if compare_to is None else self._cells(student, compare_to)
        gain = None if compare_to is None else self._gain(cells, others, compare_to)
        headroom = None
        teachers = self.teachers(student, row) or self.teachers(student)
        if gain is not None and len(teachers) == 1:
            paired = [others[seed].figures["miou"] for seed in _pairs(cells, others)]
            headroom = teachers[0] - mean(paired)
        return Line(
            student,
            row,
            list(cells),
            _known(cells, "miou"),
            _known(cells, "class_accuracy"),
            first["epochs"],
            first["parameters"],
            gain,
            gain.mean / headroom if gain is not None and headroom and headroom > 0 else None,
            None if alone is None else self._gain(cells, self._cells(student, alone), alone),
            self.results.decided.get(step_time(Key(student, row, 0)), {}).get("ratio"),
        )

    def _gain(
        self, cells: dict[int, CellResult], others: dict[int, CellResult], to: str
    ) -> Gain | None:
        pairs = [(cells[seed], others[seed]) for seed in _pairs(cells, others)]
        if not pairs:
            return None
        values = [one.figures["miou"] - other.figures["miou"] for one, other in pairs]
        over_images = []
        if all(cell.parts is not None for pair in pairs for cell in pair):
            over_images = [
                self._over_images(one) - self._over_images(other) for one, other in pairs
            ]
        return gain_over(to, values, over_images)

    def _over_images(self, cell: CellResult) -> Floats:
        assert cell.parts is not None
        if id(cell) not in self._resampled:  # the cell is kept too: its id stays its own
            self._resampled[id(cell)] = cell, resampled(cell.parts)
        return self._resampled[id(cell)][1]


def _known(cells: dict[int, CellResult], score: str) -> list[float]:
    found = (cell.figures[score] for cell in cells.values())
    return [value for value in found if value is not None]


def _pairs(cells: dict[int, CellResult], others: dict[int, CellResult]) -> list[int]:
    """Seeds of which both have a score."""
    return [
        seed
        for seed, cell in cells.items()
        if seed in others and None not in (cell.figures["miou"], others[seed].figures["miou"])
    ]


def to_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The statistics as plain data; fractions."""

    def gain(found: Gain | None) -> dict[str, Any] | None:
        if found is None:
            return None
        interval = None if found.interval is None else list(found.interval)
        return {
            "to": found.to,
            "values": found.values,
            "mean": found.mean,
            "interval_95": interval,
            "clear": found.is_clear,
            "over_images": found.over_images,
        }

    return [
        {**vars(line), "gain": gain(line.gain), "at_equal_time": gain(line.at_equal_time)}
        for line in lines
    ]
