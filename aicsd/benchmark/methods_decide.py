"""Decisions of a benchmark: epochs that make two rows equal, weights from short trainings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

from aicsd.benchmark.methods import Benchmark, Cell, Key, Match, stated
from aicsd.benchmark.methods_measure import measure_weights, step_ratio
from aicsd.benchmark.methods_results import Results, ratio_from_logs, step_time
from aicsd.data.batches import epoch_indices
from aicsd.data.splits import open_splits
from aicsd.engine.finite import NonFiniteLossError
from aicsd.engine.run_batches import plan_run
from aicsd.errors import UserError, one_line


class Decider:
    """Turns a place of the table into trainings, as soon as it is known what they are.

    Decisions are stored in the results, so that they hold when a benchmark is continued; but
    not what was decided for other options.

    Args:
        benchmark: from the file.
        results: finished cells and decisions.
    """

    def __init__(self, benchmark: Benchmark, results: Results) -> None:
        self.benchmark, self.results = benchmark, results
        self._final: dict[Key, Cell] = {}
        self._unmeasured: set[str] = set()
        for name, options in self._bases():
            digest = sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()
            if results.decided_for.get(name, digest) != digest:
                results.decided.pop(name, None)
            results.decided_for[name] = digest

    def _bases(self) -> Iterator[tuple[str, object]]:
        """Basis of each decision."""
        benchmark, seed = self.benchmark, self.benchmark.seeds[0]
        for student in benchmark.students:
            options = {
                row: stated(benchmark.cell(Key(student, row, seed)).options)
                for row in benchmark.rows
            }
            steps = {
                row: {k: v for k, v in own.items() if k != "epochs"} for row, own in options.items()
            }
            for row in benchmark.rows.values():
                key, own = Key(student, row.name, seed), steps[row.name]
                yield step_time(key), (own, steps[benchmark.baseline])
                yield self._matched(key), own
                search = benchmark.search if row.search else None
                yield self._weights(key), (options[row.name], search)
                other = None if row.match is None else options[row.match.row]
                yield self._epochs_of(key), (options[row.name], row.match, other)

    def cells(self, key: Key, measure: bool = True) -> list[Cell]:
        """The trainings to do next for a cell of the table.

        Those that its weights are chosen by, if they are still to be chosen; none, if it waits for
        another row.

        Args:
            key: the cell.
            measure: whether gradients may be measured, which takes a while; else the cell waits.
        """
        if key in self._final:
            return [self._final[key]]
        row = self.benchmark.rows[key.row]
        decided: list[dict[str, Any]] = []
        if row.search:
            if not measure and self._matched(key) not in self.results.decided:
                return []
            trials = self._trials(key)
            missing = [trial for trial in trials if trial.key not in self.results.cells]
            if missing and len(trials) > 1:
                return missing
            decided.append(self._best(key, trials))
        if row.match is not None:
            waits = row.is_control and step_time(key._replace(row=row.match.row))
            if not measure and waits and waits not in self.results.decided:
                return []
            epochs = self._epochs(key, row.match, decided)
            if epochs is None:
                return []
            decided.append({"epochs": epochs})
        self._final[key] = self.benchmark.cell(key, *decided)
        return [self._final[key]]

    @staticmethod
    def _matched(key: Key) -> str:
        return f"{key.student} {key.row}: gradient-matched weights"

    @staticmethod
    def _weights(key: Key) -> str:
        return f"{key.student} {key.row}: weights"

    @staticmethod
    def _epochs_of(key: Key) -> str:
        return f"{key.student} {key.row}: epochs"

    def _trials(self, key: Key) -> list[Cell]:
        search, first = self.benchmark.search, key._replace(seed=self.benchmark.seeds[0])
        full = self.benchmark.cell(first)
        name = self._matched(key)
        if name not in self.results.decided:
            self.results.decided[name] = measure_weights(full)
        matched = self.results.decided[name]
        epochs = max(1, round(search.share * full.config.epochs))
        return [
            replace(
                self.benchmark.cell(
                    first,
                    {
                        "epochs": epochs,
                        "val_every": 0,
                        "terms": {term: {"weight": factor * w} for term, w in matched.items()},
                    },
                ),
                key=first._replace(row=trial_name(key.row, factor)),
            )
            for factor in search.factors
        ]

    def _best(self, key: Key, trials: list[Cell]) -> dict[str, Any]:
        name = self._weights(key)
        if name not in self.results.decided:
            best = trials[0]
            if len(trials) > 1:
                scores = [self.results.cells[trial.key].figures["miou"] for trial in trials]
                if None in scores:
                    raise UserError(
                        f"methods.{key.row}: search compares short trainings by mIoU, and no pixel "
                        "of the validation images has a label; give it a single factor, which "
                        "needs no training: search: {factors: [1]}"
                    )
                best = trials[scores.index(max(scores))]
            matched = self.results.decided[self._matched(key)]
            weights = {term: best.config.terms[term]["weight"] for term in matched}
            self.results.decided[name] = weights
        chosen = self.results.decided[name]
        return {"terms": {term: {"weight": weight} for term, weight in chosen.items()}}

    def _epochs(self, key: Key, match: Match, decided: list[dict[str, Any]]) -> int | None:
        name = self._epochs_of(key)
        if name not in self.results.decided:
            first = self.benchmark.seeds[0]
            epochs = (
                self._equal_time(key._replace(seed=first), match.row)
                if match.what == "time"
                else self._equal_views(key._replace(seed=first), match, decided)
            )
            if epochs is None:
                return None
            self.results.decided[name] = {"epochs": epochs}
        return int(self.results.decided[name]["epochs"])

    def _equal_time(self, key: Key, row: str) -> int | None:
        """Epochs in which the baseline takes as long as ``row``; a ratio is rounded to a tenth."""
        target = key._replace(row=row)
        if target not in self.results.cells:
            return None
        ratio = self.ratio(target)
        if ratio is None and step_time(target) in self.results.decided:
            raise UserError(
                f"methods.{key.row}: neither a measurement nor the logs of the runs give the time "
                f"of a step of {row!r}"
            )
        epochs: int = self.results.cells[target].figures["epochs"]
        return None if ratio is None else max(1, round(epochs * round(ratio, 1)))

    def ratio(self, key: Key) -> float | None:
        """Time of a step over that of the baseline; measured once, and kept.

        Where it cannot be measured, which is tried once, it is taken from the logs of the runs,
        which other work on the machine may have slowed down.
        """
        name = step_time(key)
        if name not in self.results.decided:
            cells, first = self.results.cells, self.benchmark.seeds[0]
            own, other = key._replace(seed=first), Key(key.student, self.benchmark.baseline, first)
            found = self.cells(own, measure=False), self.cells(other, measure=False)
            if any(len(each) != 1 for each in found):
                return None
            (cell,), (alone,) = found
            if name not in self._unmeasured:
                try:
                    self.results.decided[name] = {"ratio": step_ratio(cell, alone)}
                except (UserError, RuntimeError, NonFiniteLossError) as error:
                    reason = one_line(error)
                    print(f"{name} is taken from the logs: {reason}", file=sys.stderr)
                    self._unmeasured.add(name)
            if name in self._unmeasured:
                if own not in cells or other not in cells:
                    return None
                self.results.decided[name] = {"ratio": ratio_from_logs(cells[own], cells[other])}
        ratio: float | None = self.results.decided[name]["ratio"]
        return ratio

    def _equal_views(self, key: Key, match: Match, decided: list[dict[str, Any]]) -> int | None:
        others = self.cells(key._replace(row=match.row))
        if not others or others[0].key.row != match.row:
            return None
        place = ("steps", "labelled_views").index(match.what)
        wanted = views(others[0])[place]
        own = views(self.benchmark.cell(key, *decided, {"epochs": 1}))[place]
        return max(1, round(wanted / max(own, 1)))


def trial_name(row: str, factor: float) -> str:
    """The name of a short training."""
    return f"{row}, weights x {factor:g}"


def views(cell: Cell) -> tuple[int, int]:
    """Optimizer steps of a training, and how often it sees an image with labels."""
    config = cell.config
    data = config.data
    train = open_splits(data, check=False)[0].train
    shown = epoch_indices(train, data)
    plan = plan_run(config, train)
    labelled = frozenset(train.labelled)
    share = sum(index in labelled for index in shown) / len(shown)
    return plan.stop // config.optimizer.accumulate, round(share * plan.stop * data.batch_size)
