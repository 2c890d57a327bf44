"""Further methods once more, as loops over single pixels, without a line of the package."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import oracles
import torch
from torch import Tensor, nn

IGNORED = 255


def grid(maps: Tensor, valid: Tensor | None) -> Iterator[tuple[int, int, int]]:
    """Image, row and column of every pixel inside."""
    batch, _, height, width = maps.shape
    for place in np.ndindex(batch, height, width):
        if valid is None or valid[place]:
            yield place  # type: ignore[misc]


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / max(oracles.norm(vector), 1e-6))


def boundary_kd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    valid: Tensor | None,
    edge: float = 1.0,
    body: float = 3.0,
    temperature: float = 4.0,
    radius: int = 1,
) -> float:
    labels = {}
    for b, y, x in grid(student, valid):
        label = int(mask[b, y, x])
        labels[b, y, x] = int(teacher[b, :, y, x].numpy().argmax()) if label == IGNORED else label
    by_class = defaultdict(list)
    interior = defaultdict(list)
    for (b, y, x), label in labels.items():
        around = {
            labels.get((b, y + dy, x + dx), label)
            for dy in range(-radius, radius + 1)
            for dx in range(-radius, radius + 1)
        }
        if len(around) > 1:
            pair = [maps[b, :, y, x].numpy() / temperature for maps in (teacher, student)]
            by_class[label].append(oracles.divergence(*map(oracles.softmax, pair)))
        else:
            interior[b].append((y, x))
    means = [math.fsum(values) / len(values) for values in by_class.values()]
    at_borders = temperature**2 * math.fsum(means) / max(len(means), 1)
    total = 0.0
    batch, channels = student.shape[:2]
    for b, places in interior.items():
        rows, columns = (list(side) for side in zip(*places, strict=True))
        for c in range(channels):
            pair = [maps[b, c].numpy()[rows, columns] / temperature for maps in (teacher, student)]
            total += oracles.divergence(*map(oracles.softmax, pair))
    return edge * at_borders + body * temperature**2 * total / (batch * channels)


def convolved(maps: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """(D, H, W) of one image, zeros around it."""
    weight = layer.weight.detach().numpy()
    found = np.zeros((len(weight), *maps.shape[1:]))
    if layer.bias is not None:
        found += layer.bias.detach().numpy()[:, None, None]
    middle = weight.shape[2] // 2
    for y, x, dy, dx in np.ndindex(*maps.shape[1:], *weight.shape[2:]):
        row, column = y + dy - middle, x + dx - middle
        if 0 <= row < maps.shape[1] and 0 <= column < maps.shape[2]:
            found[:, y, x] += weight[:, :, dy, dx] @ maps[:, row, column]
    return found


def masked_generative(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    module: nn.Module,
    masked: float = 0.75,
) -> float:
    hidden = torch.rand(len(student), *student.shape[2:]).numpy() < masked
    error = energy = 0.0
    for b in range(len(student)):
        aligned = convolved(student[b].numpy(), module.align)  # type: ignore[arg-type]
        inside = np.ones_like(hidden[b]) if valid is None else valid[b].numpy()
        first, second = module.generate  # type: ignore[misc]
        between = np.maximum(convolved(aligned * (inside & ~hidden[b]), first), 0) * inside
        generated = convolved(between, second)
        for _, y, x in grid(student[b : b + 1], None if valid is None else valid[b : b + 1]):
            target = teacher[b, :, y, x].numpy()
            error += float(((generated[:, y, x] - target) ** 2).sum())
            energy += float((target**2).sum())
    return error / energy


def cross_image(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    temperature: float = 0.1,
    patch: int = 2,
) -> float:
    def nodes(maps: Tensor, b: int) -> list[np.ndarray]:
        squares = defaultdict(list)
        for _, y, x in grid(maps[b : b + 1], None if valid is None else valid[b : b + 1]):
            squares[y // patch, x // patch].append(maps[b, :, y, x].numpy())
        return [unit(np.mean(squares[place], axis=0)) for place in sorted(squares)]

    images = [(nodes(teacher, b), nodes(student, b)) for b in range(len(student))]
    found = []
    for own in images:
        for theirs, ours in zip(*own, strict=True):
            for keys in images:
                pair = [
                    oracles.softmax(np.array([node @ key for key in side]) / temperature)
                    for node, side in ((theirs, keys[0]), (ours, keys[1]))
                ]
                found.append(oracles.divergence(*pair))
    return math.fsum(found) / len(found)


def cross_image_memory(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    valid: Tensor | None,
    pixels: float = 1.0,
    regions: float = 1.0,
    temperature: float = 0.1,
    pixel_slots: int = 1000,
    region_slots: int = 500,
    pixel_keys: int = 1024,
    region_keys: int = 512,
) -> float:
    classes = student.shape[1]
    draws = (1 - torch.rand(len(student), student[0, 0].numel())).view(mask.shape).numpy()
    memory: dict[str, list[list[np.ndarray]]] = {
        "pixels": [[] for _ in range(classes)],
        "regions": [[] for _ in range(classes)],
    }
    for c in range(classes):
        for b in range(len(student)):
            places = [
                place for place in grid(student, valid) if place[0] == b and int(mask[place]) == c
            ]
            vectors = {place: unit(teacher[b, :, place[1], place[2]].numpy()) for place in places}
            order = sorted(places, key=lambda place: -draws[place])
            memory["pixels"][c] += [vectors[place] for place in order[:16]]
            if places:
                memory["regions"][c].append(unit(sum(vectors.values())))  # type: ignore[arg-type]
    total = 0.0
    for name, weight, slots, count in (
        ("pixels", pixels, pixel_slots, pixel_keys),
        ("regions", regions, region_slots, region_keys),
    ):
        spots = torch.rand(classes, math.ceil(count / classes)).numpy()
        keys = []
        for c, vectors in enumerate(memory[name]):
            ring: dict[int, np.ndarray] = {}
            for number, vector in enumerate(vectors):
                ring[number % slots] = vector
            keys += [ring[int(spot * len(ring))] for spot in spots[c] if ring]
        values = []
        for b, y, x in grid(student, valid):
            pair = [unit(maps[b, :, y, x].numpy()) for maps in (teacher, student)]
            values.append(
                oracles.divergence(
                    *(oracles.softmax(np.array(keys) @ each / temperature) for each in pair)
                )
            )
        total += weight * math.fsum(values) / len(values)
    return total


def sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-values)))


def gated(maps: np.ndarray, seen: np.ndarray, gates: nn.Module) -> np.ndarray:
    """CBAM of one image (D, H, W)."""
    inside = maps[:, seen]
    first, _, second = gates.channel  # type: ignore[misc]
    scores = np.zeros(len(maps))
    for summary in (inside.mean(axis=1), inside.max(axis=1)):
        weights = [part.detach().numpy() for part in (first.weight, first.bias)]
        hidden = np.maximum(weights[0] @ summary + weights[1], 0)
        scores += second.weight.detach().numpy() @ hidden + second.bias.detach().numpy()
    maps = maps * seen * sigmoid(scores)[:, None, None]
    described = np.stack([maps.max(axis=0), maps.mean(axis=0)])
    return np.asarray(maps * sigmoid(convolved(described, gates.pixel)))  # type: ignore[arg-type]


def refined_features(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    module: nn.Module,
    refine_teacher: bool = True,
) -> float:
    total = 0.0
    for b in range(len(student)):
        own, other = student[b].numpy(), teacher[b].numpy()
        seen = np.ones(own.shape[1:], bool) if valid is None else valid[b].numpy()
        own = convolved(gated(own, seen, module.gates), module.connector)  # type: ignore[arg-type]
        if refine_teacher:
            other = gated(other, seen, module.teacher_gates)  # type: ignore[arg-type]
        pair = [unit((maps * seen).flatten()) for maps in (own, other)]
        total += float(((pair[0] - pair[1]) ** 2).sum())
    return total / len(student)
