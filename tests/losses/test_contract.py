"""One row for every loss: an oracle, the options to test, and what does not hold for it."""

from __future__ import annotations

from typing import ClassVar

import oracles
from contract_suite import ContractSuite, Row

ROWS = {
    "cross_entropy": Row(oracles.cross_entropy, ({}, {"numerics": "released"})),
    "pixel_kd": Row(
        oracles.pixel_kd,
        (
            {},
            {"temperature": 4.0},
            {"temperature": 0.5, "reduction": "element_mean"},
            {"reduction": "image_sum"},
            {"temperature": 4.0, "numerics": "released"},
        ),
    ),
    "icsd": Row(
        oracles.icsd,
        (
            {},
            {"temperature": 2.5},
            {"normalize_rows": False},
            {"per_image": True},
            {"normalize_rows": False, "per_image": True},
            {"numerics": "released"},
        ),
        differs={"nothing_valid_is_zero": "an image of padding keeps all its pixels"},
    ),
    "attention": Row(oracles.attention, ({}, {"numerics": "released"})),
    "pairwise": Row(
        oracles.pairwise,
        ({}, {"patch": 1}, {"patch": 3}, {"patch": 0}, {"numerics": "released"}),
        refuses={"patch": (-1,)},
        differs={
            "gradient numerics=released": "it takes the norm as a constant: see test_rivals",
            "padding_equals_smaller_maps patch=0": "its nodes are halves of the whole map",
        },
    ),
    "correlation": Row(oracles.correlation, ({}, {"numerics": "released"})),
}


class TestContract(ContractSuite):
    rows: ClassVar[dict[str, Row]] = ROWS
