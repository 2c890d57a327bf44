"""The losses once more, as loops over single pixels and pairs: slow, plain and independent."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from torch import Tensor


def pixels(maps: Tensor, valid: Tensor | None, b: int) -> np.ndarray:
    """(C, n): the valid pixels of image ``b``."""
    values = maps[b].flatten(1).numpy()
    return values if valid is None else values[:, valid[b].flatten().numpy()]


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats; what p gives no probability costs nothing."""
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return math.inf
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def norm(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for v in values))


def cross_entropy(
    student: Tensor, mask: Tensor, ignore_index: int = 255, numerics: str = "described"
) -> float:
    terms = []
    for (b, y, x), label in np.ndenumerate(mask.numpy()):
        if label != ignore_index:
            terms.append(-math.log(softmax(student[b, :, y, x].numpy())[label]))
    mean = math.fsum(terms) / max(1, len(terms))
    return mean / len(student) if numerics == "released" else mean


def pixel_kd(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    temperature: float = 1.0,
    reduction: str | None = None,
    numerics: str = "described",
) -> float:
    released = numerics == "released"
    terms = []
    for b in range(len(student)):
        pair = [pixels(maps, None if released else valid, b) for maps in (teacher, student)]
        for p, q in zip(*(maps.T for maps in pair), strict=True):
            terms.append(divergence(softmax(p / temperature), softmax(q / temperature)))
    reduction = reduction or ("element_mean" if released else "pixel_mean")
    divisor = {
        "pixel_mean": len(terms),
        "element_mean": len(terms) * student.shape[1],
        "image_sum": len(student),
    }[reduction]
    return temperature**2 * math.fsum(terms) / max(1, divisor)


def ics_matrix(logits: Tensor, temperature: float, valid: Tensor | None = None) -> np.ndarray:
    """KL of every ordered pair of class maps, one pair at a time, (B, C, C)."""
    batch, classes = logits.shape[:2]
    result = np.zeros((batch, classes, classes))
    for b in range(batch):
        rho = [softmax(scores / temperature) for scores in pixels(logits, valid, b)]
        for i in range(classes):
            for j in range(classes):
                result[b, i, j] = divergence(rho[i], rho[j])
    return result


def released_ics_matrix(logits: Tensor) -> np.ndarray:
    """KLDivLoss of probabilities where logs belong; upper triangle, mirrored; rows normalised."""
    values = logits.numpy()
    batch, classes, height, width = values.shape
    q = np.zeros_like(values)
    for b in range(batch):
        for c in range(classes):
            for x in range(width):
                q[b, c, :, x] = softmax(values[b, c, :, x])
    matrix = np.zeros((classes, classes))
    for i in range(classes):
        for j in range(i, classes):
            matrix[i, j] = math.fsum(
                q[b, j, y, x] * (math.log(q[b, j, y, x]) - q[b, i, y, x])
                if q[b, j, y, x] > 0
                else 0.0
                for b in range(batch)
                for y in range(height)
                for x in range(width)
            )
            matrix[i, j] /= batch
            matrix[j, i] = matrix[i, j]
    for row in matrix:
        row /= max(norm(row), 1e-12)
    return matrix


def icsd(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    temperature: float = 1.0,
    normalize_rows: bool = True,
    per_image: bool = False,
    numerics: str = "described",
) -> float:
    if numerics == "released":
        difference = released_ics_matrix(student) - released_ics_matrix(teacher)
        return float((difference**2).mean()) / len(student)
    pair = []
    for logits in (student, teacher):
        matrices = ics_matrix(logits, temperature, valid)
        if not per_image:
            matrices = matrices.sum(axis=0)[None] / len(matrices)
        if normalize_rows:
            for matrix in matrices:
                for row in matrix:
                    length = norm(row)  # inf / inf is nan, as in the loss
                    row[:] = [
                        math.nan if math.isinf(length) else v / max(length, 1e-6) for v in row
                    ]
        pair.append(matrices)
    return float(((pair[0] - pair[1]) ** 2).mean())


def attention(
    student: Tensor, teacher: Tensor, valid: Tensor | None, numerics: str = "described"
) -> float:
    batch, _, height, width = student.shape
    released = numerics == "released"
    maps = []
    for features in (student.numpy(), teacher.numpy()):
        attention = np.zeros((batch, height, width))
        for (b, y, x), _ in np.ndenumerate(attention):
            if released or valid is None or bool(valid[b, y, x]):
                values = features[b, :, y, x]
                attention[b, y, x] = math.fsum(float(v) ** 2 for v in values) / len(values)
        for b in range(batch):
            if released:
                for x in range(width):
                    attention[b, :, x] /= max(norm(attention[b, :, x]), 1e-12)
            else:
                attention[b] /= max(norm(attention[b].ravel()), 1e-12)
        maps.append(attention)
    squares = [(s - t) ** 2 for s, t in zip(maps[0].ravel(), maps[1].ravel(), strict=True)]
    return math.fsum(squares) / (batch * height * width if released else batch)


def _nodes(
    features: np.ndarray, window: tuple[int, int], released: bool, valid: np.ndarray | None
) -> list[np.ndarray]:
    """One vector a patch of (D, H, W) features; a patch outside the image has none."""
    channels, height, width = features.shape
    nodes = []
    for top in range(0, height, window[0]):
        for left in range(0, width, window[1]):
            inside = [
                features[:, y, x]
                for y in range(top, min(top + window[0], height))
                for x in range(left, min(left + window[1], width))
                if released or valid is None or valid[y, x]
            ]
            if not inside:
                continue
            columns = [[float(p[c]) for p in inside] for c in range(channels)]
            pool = max if released else (lambda c: math.fsum(c) / len(c))
            nodes.append(np.array([pool(column) for column in columns]))
    return nodes


def pairwise(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    patch: int | None = None,
    numerics: str = "described",
) -> float:
    batch, _, height, width = student.shape
    released = numerics == "released"
    patch = patch if patch is not None else (0 if released else 2)
    window = (patch or max(1, height // 2), patch or max(1, width // 2))
    total = 0.0
    for b in range(batch):
        where = None if valid is None else valid[b].numpy()
        pair = [_nodes(maps[b].numpy(), window, released, where) for maps in (student, teacher)]
        count = len(pair[0])
        for m in range(count):
            for n in range(count):
                cosines = [
                    float(nodes[m] @ nodes[n]) / ((norm(nodes[m]) or 1.0) * (norm(nodes[n]) or 1.0))
                    for nodes in pair
                ]
                total += (cosines[0] - cosines[1]) ** 2 / max(1, count) ** 2
    return total / batch


def correlation(
    student: Tensor, teacher: Tensor, valid: Tensor | None, numerics: str = "described"
) -> float:
    batch, classes = student.shape[:2]
    where = None if numerics == "released" else valid
    total = 0.0
    for b in range(batch):
        matrices = []
        for logits in (student, teacher):
            values = pixels(logits, where, b)
            matrix = np.array([[math.fsum(u * v) for v in values] for u in values])
            for row in matrix:
                row /= max(norm(row), 1e-12)
            matrices.append(matrix)
        total += float(((matrices[0] - matrices[1]) ** 2).sum())
    return total / (classes * batch)
