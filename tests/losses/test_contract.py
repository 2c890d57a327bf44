"""One row for every loss: an oracle, the options to test, and what does not hold for it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import oracles
import oracles_of_methods as of_methods
import torch
from contract_cases import Maps, Row
from contract_suite import ContractSuite
from torch import Tensor

WEIGHTS = [1.0, 0.25, 3.0, 0.0, 2.0, 1.5]
"""Weights of up to six classes."""
BAD_WEIGHTS: tuple[Any, ...] = ("nonsense", [], [-1.0], [0.0, 0.0], [float("nan")], [True], 3.0)

ROWS = {
    "cross_entropy": Row(
        oracles.cross_entropy,
        (
            {},
            {"class_weights": WEIGHTS[:4]},
            {"label_smoothing": 0.2},
            {"class_weights": WEIGHTS[:4], "label_smoothing": 0.3, "numerics": "released"},
            {"numerics": "released"},
        ),
        refuses={"label_smoothing": (-0.1, 1.0, float("nan")), "class_weights": BAD_WEIGHTS},
    ),
    "ohem_cross_entropy": Row(
        oracles.ohem_cross_entropy,
        (
            {},
            {"keep": 0.9, "threshold": 0.0},
            {"keep": 0.0, "threshold": 0.5},
            {"keep": 0.6, "threshold": 0.2, "class_weights": WEIGHTS[:4]},
        ),
        refuses={"keep": (-0.1, 1.1), "threshold": (-1.0, 2.0), "class_weights": BAD_WEIGHTS},
        differs={"ranks": "each process keeps its own hardest pixels"},
    ),
    "focal": Row(
        oracles.focal,
        (
            {},
            {"gamma": 0.5, "class_weights": WEIGHTS[:4]},
            {"gamma": 0.0},
            {"numerics": "released"},
        ),
        refuses={"gamma": (-1.0, float("nan")), "class_weights": BAD_WEIGHTS},
    ),
    "dice": Row(oracles.dice),
    "lovasz": Row(
        oracles.lovasz,
        ({}, {"per_image": True}),
        differs={"ranks": "each process sorts its own pixels", "ranks per_image=True": ""},
    ),
    "label_soft": Row(
        oracles.label_soft,
        ({}, {"sigma": 0.0}, {"sigma": 0.6, "label_smoothing": 0.0, "temperature": 2.0}),
        refuses={"sigma": (-1.0, float("inf")), "label_smoothing": (-0.1, 1.0)},
    ),
    "pixel_kd": Row(
        oracles.pixel_kd,
        (
            {},
            {"temperature": 4.0},
            {"temperature": 0.5, "reduction": "element_mean"},
            {"reduction": "image_sum"},
            {"standardize": True, "temperature": 2.0},
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
        differs={
            "nothing_valid_is_zero": "an image of padding keeps all its pixels",
            "infinite_logits_of_the_teacher_give_the_right_value_or_none": (
                "they give the limit of finite ones: see test_icsd"
            ),
            "infinite_logits_of_the_teacher_give_the_right_value_or_none numerics=released": "",
        },
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


def channel_wise(
    student: Tensor, teacher: Tensor, valid: Tensor | None, temperature: float = 4.0
) -> float:
    batch, channels = student.shape[:2]
    total = 0.0
    for b in range(batch):
        pair = [oracles.pixels(maps, valid, b) / temperature for maps in (teacher, student)]
        total += sum(
            oracles.divergence(oracles.softmax(p), oracles.softmax(q))
            for p, q in zip(*pair, strict=True)
        )
    return temperature**2 * total / (batch * channels)


ROWS["channel_wise"] = Row(channel_wise, ({}, {"temperature": 1.0}))


def dist(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
) -> float:
    p, q = (
        np.concatenate([oracles.pixels(m / temperature, valid, b) for b in range(len(m))], axis=1)
        for m in (student, teacher)
    )
    p, q = (np.stack([oracles.softmax(column) for column in maps.T]) for maps in (p, q))

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a - a.mean(), b - b.mean()
        return float(a @ b / (max(oracles.norm(a), 1e-8) * max(oracles.norm(b), 1e-8)))

    rows = [1 - correlation(a, b) for a, b in zip(p, q, strict=True)]
    columns = [1 - correlation(a, b) for a, b in zip(p.T, q.T, strict=True)]
    return inter * float(np.mean(rows)) + intra * float(np.mean(columns))


ROWS["dist"] = Row(
    dist,
    ({}, {"inter": 0.5, "intra": 2.0, "temperature": 4.0}, {"intra": 0.0}),
    refuses={"inter": (-1.0, float("nan")), "intra": (-1.0,)},
)


def feature_kd(student: Maps, teacher: Maps, valid: Tensor | None, normalize: bool = True) -> float:
    if isinstance(student, dict) and isinstance(teacher, dict):
        logits = teacher["logits"]
        student, teacher = student["stage4"], teacher["stage4"]
    else:
        assert isinstance(student, Tensor)
        assert isinstance(teacher, Tensor)
        logits = torch.zeros_like(student)
    total, weights = 0.0, 0.0
    for b in range(len(student)):
        columns = [oracles.pixels(maps, valid, b).T for maps in (student, teacher, logits)]
        for f, g, z in zip(*columns, strict=True):
            weight = float(oracles.softmax(z).max())
            weights += weight
            if normalize:
                f, g = f / oracles.norm(f), g / oracles.norm(g)
            total += weight * float(((f - g) ** 2).sum()) / (1 if normalize else len(f))
    return total / weights


ROWS["feature_kd"] = Row(feature_kd, ({}, {"normalize": False}))
ROWS["feature_kd by confidence"] = Row(feature_kd, loss="feature_kd", maps=("stage4", "logits"))


NETWORK = "a network stands between the student and the comparison"
RANDOM = "it draws pixels, as many as a map has"


def standardized_kd(
    student: Tensor, teacher: Tensor, valid: Tensor | None, temperature: float = 2.0
) -> float:
    return oracles.pixel_kd(student, teacher, valid, temperature, standardize=True)


ROWS["standardized_kd"] = Row(standardized_kd, ({}, {"temperature": 1.0}))
ROWS["boundary_kd"] = Row(
    of_methods.boundary_kd,
    ({}, {"edge": 0.0, "body": 1.0, "temperature": 1.0}, {"radius": 2, "body": 0.5}),
    refuses={"edge": (-1.0, float("nan")), "body": (-1.0,), "radius": (0, -1)},
    shape=(2, 4, 9, 8),
    blobs=5,
)
ROWS["boundary_weighted_kd"] = Row(
    of_methods.boundary_weighted_kd,
    ({}, {"boost": 0.0, "temperature": 2.0}, {"radius": 2, "boost": 0.5}),
    refuses={"boost": (-1.0, float("nan")), "radius": (0, -1)},
    shape=(2, 4, 9, 8),
    blobs=5,
)
ROWS["masked_generative"] = Row(
    of_methods.masked_generative,
    ({}, {"masked": 0.0}),
    refuses={"masked": (-0.1, 1.0)},
    differs={
        "zero_at_the_teacher": NETWORK,
        "function_equals_module": NETWORK,
        "padding_equals_smaller_maps": RANDOM,
        "padding_equals_smaller_maps masked=0.0": "",
        "ranks": RANDOM,
        "ranks masked=0.0": "",
    },
)
ROWS["cross_image"] = Row(
    of_methods.cross_image,
    ({}, {"patch": 1, "temperature": 0.5}, {"patch": 3}),
    refuses={"patch": (0, -1)},
    differs={"ranks": "each process compares its own images"},
)
ROWS["cross_image_memory"] = Row(
    of_methods.cross_image_memory,
    (
        {},
        {"pixel_slots": 2, "region_slots": 1, "pixel_keys": 9, "region_keys": 3, "regions": 2.0},
    ),
    refuses={
        "pixels": (-1.0,),
        "regions": (-1.0,),
        **dict.fromkeys(("pixel_slots", "region_slots", "pixel_keys", "region_keys"), (0,)),
    },
    differs={
        "function_equals_module": "the module has a memory",
        "padding_equals_smaller_maps": RANDOM,
        "ranks": "each process draws its own keys",
    },
)
ROWS["refined_features"] = Row(
    of_methods.refined_features,
    ({}, {"refine_teacher": False}),
    refuses={"reduction": (0, -1)},
    differs={"zero_at_the_teacher": NETWORK, "function_equals_module": NETWORK},
)

ROWS["intra_class_variation"] = Row(of_methods.intra_class_variation)
ROWS["dense_contrast"] = Row(
    of_methods.dense_contrast,
    ({}, {"masked": 0.0, "groups": 3, "contrast": 1.0}, {"pool": 1, "patch": 3, "generation": 0.0}),
    refuses={
        "masked": (-0.1, 1.0),
        "generation": (-1.0,),
        "contrast": (-1.0,),
        **dict.fromkeys(("groups", "pool", "patch"), (0,)),
    },
    shape=(2, 5, 6, 7),
    differs={
        "zero_at_the_teacher": NETWORK,
        "function_equals_module": NETWORK,
        "padding_equals_smaller_maps": RANDOM,
        "padding_equals_smaller_maps masked=0.0 groups=3 contrast=1.0": "",
        "ranks": RANDOM,
        "ranks masked=0.0 groups=3 contrast=1.0": "",
    },
)
ROWS["holistic"] = Row(
    of_methods.holistic,
    ({}, {"width": 3}),
    refuses={"width": (0,)},
    differs={
        "gradient": "it is a game: see test_holistic",
        "zero_at_the_teacher": "it is a game",
        "function_equals_module": NETWORK,
        "padding_equals_smaller_maps": "strided convolutions see where a map ends",
    },
)
ROWS["margin_features"] = Row(
    of_methods.margin_features,
    differs={"function_equals_module": "the module knows the margins of the teacher"},
)


class TestContract(ContractSuite):
    rows: ClassVar[dict[str, Row]] = ROWS
