"""Further methods once more, as loops over single pixels, without a line of the package."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracles
import torch
from torch import Tensor

IGNORED = 255


def grid(maps: Tensor, valid: Tensor | None) -> Iterator[tuple[int, int, int]]:
    """Image, row and column of every pixel inside."""
    batch, _, height, width = maps.shape
    for place in np.ndindex(batch, height, width):
        if valid is None or valid[place]:
            image, row, column = place
            yield image, row, column


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
    by_class = defaultdict(list)
    interior = defaultdict(list)
    for (b, y, x), label, at_border in bordering(teacher, mask, valid, radius):
        if at_border:
            by_class[label].append(pixel_divergence(student, teacher, (b, y, x), temperature))
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


def bordering(
    teacher: Tensor, mask: Tensor, valid: Tensor | None, radius: int
) -> Iterator[tuple[tuple[int, int, int], int, bool]]:
    """Every pixel inside: its place, its label, and whether another label is near."""
    labels = {}
    for b, y, x in grid(teacher, valid):
        label = int(mask[b, y, x])
        labels[b, y, x] = int(teacher[b, :, y, x].numpy().argmax()) if label == IGNORED else label
    for (b, y, x), label in labels.items():
        around = {
            labels.get((b, y + dy, x + dx), label)
            for dy in range(-radius, radius + 1)
            for dx in range(-radius, radius + 1)
        }
        yield (b, y, x), label, len(around) > 1


def pixel_divergence(
    student: Tensor, teacher: Tensor, place: tuple[int, int, int], temperature: float
) -> float:
    b, y, x = place
    pair = [maps[b, :, y, x].numpy() / temperature for maps in (teacher, student)]
    return oracles.divergence(*map(oracles.softmax, pair))


def boundary_weighted_kd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    valid: Tensor | None,
    boost: float = 4.0,
    temperature: float = 1.0,
    radius: int = 1,
) -> float:
    total = weights = 0.0
    for place, _, at_border in bordering(teacher, mask, valid, radius):
        weight = 1 + boost if at_border else 1.0
        total += weight * pixel_divergence(student, teacher, place, temperature)
        weights += weight
    return temperature**2 * total / max(weights, 1)


def convolved(maps: np.ndarray, layer: Any) -> np.ndarray:
    """(D, H, W) of one image by a layer with ``weight`` and ``bias``, zeros around it."""
    bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
    return correlated(maps, layer.weight.detach().numpy(), bias)


def correlated(
    maps: np.ndarray, weight: np.ndarray, bias: np.ndarray | float, stride: int = 1
) -> np.ndarray:
    """(D, H, W) of one image by a kernel (D', D, k, k), zeros around it."""
    rows, columns = (math.ceil(side / stride) for side in maps.shape[1:])
    found = np.zeros((rows, columns, len(weight))) + bias
    middle = weight.shape[2] // 2
    for y, x, dy, dx in np.ndindex(rows, columns, *weight.shape[2:]):
        row, column = stride * y + dy - middle, stride * x + dx - middle
        if 0 <= row < maps.shape[1] and 0 <= column < maps.shape[2]:
            found[y, x] += weight[:, :, dy, dx] @ maps[:, row, column]
    return found.transpose(2, 0, 1)


def made(student: Tensor, valid: Tensor | None, module: Any, masked: float) -> np.ndarray:
    """Output of the generator for a part of the student's map."""
    hidden = torch.rand(len(student), *student.shape[2:]).numpy() < masked
    found = []
    for b in range(len(student)):
        aligned = convolved(student[b].numpy(), module.align)
        inside = np.ones_like(hidden[b]) if valid is None else valid[b].numpy()
        first, second = module.generate
        between = np.maximum(convolved(aligned * (inside & ~hidden[b]), first), 0) * inside
        found.append(convolved(between, second))
    return np.stack(found)


def relative_error(generated: np.ndarray, teacher: Tensor, valid: Tensor | None) -> float:
    error = energy = 0.0
    for b, y, x in grid(teacher, valid):
        target = teacher[b, :, y, x].numpy()
        error += float(((generated[b, :, y, x] - target) ** 2).sum())
        energy += float((target**2).sum())
    return error / energy


def masked_generative(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    module: Any,
    masked: float = 0.75,
) -> float:
    return relative_error(made(student, valid, module, masked), teacher, valid)


def dense_contrast(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    module: Any,
    masked: float = 0.75,
    generation: float = 1.0,
    contrast: float = 0.1,
    groups: int = 16,
    pool: int = 2,
    patch: int = 4,
    temperature: float = 0.07,
) -> float:
    generated = made(student, valid, module, masked)
    channels = teacher.shape[1]
    width = max(2, math.ceil(channels / groups))
    squares = defaultdict(list)
    for b, y, x in grid(teacher, valid):
        squares[b, y // pool, x // pool].append((y, x))
    patches: dict[tuple[int, int, int], list[tuple[int, np.ndarray, np.ndarray]]] = defaultdict(
        list
    )
    for b, row, column in squares:
        for begin in range(0, channels, width):
            own: list[np.ndarray] = []
            for maps in (generated[b], teacher[b].numpy()):
                values = [maps[begin : begin + width, y, x] for y, x in squares[b, row, column]]
                direction = unit(np.max(values, axis=0))
                own.append(np.pad(direction, (0, width - len(direction))))
            patches[b, row // patch, column // patch].append((begin, own[0], own[1]))
    lost = []
    for entries in patches.values():
        for group, vector, positive in entries:
            scores = [-np.abs(vector - positive).sum() / temperature]
            for other, _, negative in entries:
                if other != group:
                    scores.append(-np.abs(vector - negative).sum() / temperature)
            highest = max(scores)
            total = math.fsum(math.exp(each - highest) for each in scores)
            lost.append(highest + math.log(total) - scores[0])
    mean = math.fsum(lost) / len(lost)
    return generation * relative_error(generated, teacher, valid) + contrast * mean


def intra_class_variation(
    student: Tensor, teacher: Tensor, mask: Tensor, valid: Tensor | None
) -> float:
    members = defaultdict(list)
    for b, y, x in grid(student, valid):
        if mask[b, y, x] != IGNORED:
            members[b, int(mask[b, y, x])].append((y, x))
    squares = []
    for (b, _), places in members.items():
        columns = [np.stack([m[b, :, y, x].numpy() for y, x in places]) for m in (student, teacher)]
        ours, theirs = ([unit(v) @ unit(part.mean(axis=0)) for v in part] for part in columns)
        squares += [(own - other) ** 2 for own, other in zip(ours, theirs, strict=True)]
    return math.fsum(squares) / max(len(squares), 1)


def score(maps: np.ndarray, critic: Any) -> float:
    """Score of one image (C, H, W), by a critic in its first training step."""
    for layer in critic.layers:
        weight, start = layer.weight.detach().numpy(), layer.vector.numpy()
        matrix = weight.reshape(len(weight), -1)
        right = matrix.T @ start
        right /= oracles.norm(right)
        kernel = weight / oracles.norm(matrix @ right)
        found = correlated(maps, kernel, layer.bias.detach().numpy(), stride=2)
        maps = np.where(found > 0, found, 0.2 * found)
    weight = critic.head.weight.detach().numpy()[0]
    return float(weight @ maps.mean(axis=(1, 2)))


def holistic(student: Tensor, teacher: Tensor, valid: Tensor | None, module: Any) -> float:
    return sum(holistic_parts(student, teacher, valid, module))


def holistic_parts(
    student: Tensor, teacher: Tensor, valid: Tensor | None, module: Any
) -> tuple[float, float]:
    """Losses of student and critic."""
    parts = [0.0, 0.0]
    for b in range(len(student)):
        scores = []
        for logits in (student, teacher):
            p = np.apply_along_axis(oracles.softmax, 0, logits[b].numpy())
            seen = 1 if valid is None else valid[b].numpy()
            scores.append(score(p * seen, module.critic))
        parts[0] -= scores[0] / len(student)
        parts[1] += (max(0, 1 - scores[1]) + max(0, 1 + scores[0])) / len(student)
    return parts[0], parts[1]


def margin_features(student: Tensor, teacher: Tensor, valid: Tensor | None) -> float:
    columns = [
        np.concatenate([oracles.pixels(maps, valid, b) for b in range(len(maps))], axis=1)
        for maps in (student, teacher)
    ]
    error = energy = 0.0
    for own, other in zip(*columns, strict=True):
        mean, deviation = other.mean(), max(float(other.std()), 1e-6)
        below = 0.5 * math.erfc(mean / deviation / math.sqrt(2))
        density = math.exp(-((mean / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
        margin = mean - deviation * density / below if below > 1e-3 else -3 * deviation
        for s, t in zip(own, np.maximum(other, margin), strict=True):
            error += (s - t) ** 2 if s > t or t > 0 else 0.0
            energy += t**2
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
                memory["regions"][c].append(unit(np.sum(list(vectors.values()), axis=0)))
    total = 0.0
    for name, weight, slots, count in (
        ("pixels", pixels, pixel_slots, pixel_keys),
        ("regions", regions, region_slots, region_keys),
    ):
        spots = torch.rand(classes, math.ceil(count / classes)).numpy()
        keys = []
        for c, remembered in enumerate(memory[name]):
            ring: dict[int, np.ndarray] = {}
            for number, vector in enumerate(remembered):
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


def gated(maps: np.ndarray, seen: np.ndarray, gates: Any) -> np.ndarray:
    """CBAM of one image (D, H, W)."""
    inside = maps[:, seen]
    first, _, second = gates.channel
    scores = np.zeros(len(maps))
    for summary in (inside.mean(axis=1), inside.max(axis=1)):
        weights = [part.detach().numpy() for part in (first.weight, first.bias)]
        hidden = np.maximum(weights[0] @ summary + weights[1], 0)
        scores += second.weight.detach().numpy() @ hidden + second.bias.detach().numpy()
    maps = maps * seen * sigmoid(scores)[:, None, None]
    described = np.stack([maps.max(axis=0), maps.mean(axis=0)])
    return np.asarray(maps * sigmoid(convolved(described, gates.pixel)))


def refined_features(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    module: Any,
    refine_teacher: bool = True,
) -> float:
    total = 0.0
    for b in range(len(student)):
        own, other = student[b].numpy(), teacher[b].numpy()
        seen = np.ones(own.shape[1:], bool) if valid is None else valid[b].numpy()
        own = convolved(gated(own, seen, module.gates), module.connector)
        if refine_teacher:
            other = gated(other, seen, module.teacher_gates)
        pair = [unit((maps * seen).flatten()) for maps in (own, other)]
        total += float(((pair[0] - pair[1]) ** 2).sum())
    return total / len(student)
