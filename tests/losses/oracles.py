"""The losses once more, as loops over single pixels and pairs: slow, plain and independent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

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
    if np.isnan(p).any() or np.isnan(q).any():
        return math.nan
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return math.inf
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def norm(values: Iterable[float]) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for v in values))


def labelled(
    student: Tensor, mask: Tensor, ignore_index: int = 255
) -> Iterator[tuple[int, np.ndarray]]:
    """Label and probabilities of every labelled pixel."""
    for (b, y, x), label in np.ndenumerate(mask.numpy()):
        if label != ignore_index:
            yield int(label), softmax(student[b, :, y, x].numpy())


def cross_entropy(
    student: Tensor,
    mask: Tensor,
    ignore_index: int = 255,
    class_weights: list[float] | None = None,
    label_smoothing: float = 0.0,
    numerics: str = "described",
) -> float:
    classes = student.shape[1]
    weights = (class_weights or [1.0] * classes)[:classes]
    terms, total = [], []
    for label, p in labelled(student, mask, ignore_index):
        for c in range(classes):
            share = label_smoothing / classes + (1 - label_smoothing) * (c == label)
            terms.append(-weights[c] * share * math.log(p[c]))
        total.append(weights[label])
    mean = math.fsum(terms) / (math.fsum(total) or 1.0)
    return mean / len(student) if numerics == "released" else mean


def ohem_cross_entropy(
    student: Tensor,
    mask: Tensor,
    threshold: float = 0.7,
    keep: float = 0.25,
    class_weights: list[float] | None = None,
) -> float:
    found = sorted((p[label], label) for label, p in labelled(student, mask))
    count = max(math.ceil(keep * len(found)), sum(p < threshold for p, _ in found))
    hardest = [(p, 1.0 if class_weights is None else class_weights[c]) for p, c in found[:count]]
    total = math.fsum(w for _, w in hardest)
    return math.fsum(-w * math.log(p) for p, w in hardest) / (total or 1.0)


def focal(
    student: Tensor,
    mask: Tensor,
    gamma: float = 2.0,
    class_weights: list[float] | None = None,
    numerics: str = "described",
) -> float:
    if numerics == "released":
        mean = cross_entropy(student, mask, class_weights=class_weights)
        return 0.5 * math.pow(1 - math.exp(-mean), gamma) * mean / len(student)
    found = [
        (p[c], 1.0 if class_weights is None else class_weights[c])
        for c, p in labelled(student, mask)
    ]
    terms = (-w * (1 - p) ** gamma * math.log(p) for p, w in found)
    return math.fsum(terms) / math.fsum(w for _, w in found)


def dice(student: Tensor, mask: Tensor) -> float:
    found = list(labelled(student, mask))
    scores = []
    for c in {label for label, _ in found}:
        both = math.fsum(p[c] for label, p in found if label == c)
        sizes = math.fsum(p[c] for _, p in found) + sum(label == c for label, _ in found)
        scores.append(2 * both / sizes)
    return 1 - math.fsum(scores) / len(scores)


def lovasz(student: Tensor, mask: Tensor, per_image: bool = False) -> float:
    """The Lovász extension as its definition has it: a Jaccard loss for every set of errors."""

    def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
        predicted = truth ^ wrong
        return 1 - len(predicted & truth) / len(predicted | truth)

    def of_pixels(found: list[tuple[int, np.ndarray]]) -> float:
        losses = []
        for c in {label for label, _ in found}:
            truth = {m for m, (label, _) in enumerate(found) if label == c}
            errors = [abs((label == c) - p[c]) for label, p in found]
            order = sorted(range(len(found)), key=lambda m: -errors[m])
            total, before = 0.0, 0.0
            for place, m in enumerate(order):
                after = jaccard_loss(set(order[: place + 1]), truth)
                total += errors[m] * (after - before)
                before = after
            losses.append(total)
        return math.fsum(losses) / max(1, len(losses))

    if not per_image:
        return of_pixels(list(labelled(student, mask)))
    images = [list(labelled(student[b : b + 1], mask[b : b + 1])) for b in range(len(mask))]
    return math.fsum(of_pixels(image) for image in images) / len(images)


def label_soft(
    student: Tensor,
    mask: Tensor,
    sigma: float = 1.0,
    label_smoothing: float = 0.1,
    temperature: float = 1.0,
) -> float:
    batch, classes, height, width = student.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    terms = []
    for b in range(batch):
        known = [(y, x) for y, x in places if mask[b, y, x] != 255]
        for y, x in known:
            q = np.zeros(classes)
            for v, u in known:
                near = ((v - y) ** 2 + (u - x) ** 2) / 2
                share = math.exp(-near / sigma**2) if sigma else float(near == 0)
                # the window ends at four standard deviations
                if max(abs(v - y), abs(u - x)) <= math.ceil(4 * sigma):
                    q[mask[b, v, u]] += share
            q = (1 - label_smoothing) * q / q.sum() + label_smoothing / classes
            terms.append(divergence(q, softmax(student[b, :, y, x].numpy() / temperature)))
    return temperature**2 * math.fsum(terms) / len(terms)


def pixel_kd(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    temperature: float = 1.0,
    reduction: str | None = None,
    standardize: bool = False,
    numerics: str = "described",
) -> float:
    released = numerics == "released"
    terms = []
    for b in range(len(student)):
        pair = [pixels(maps, None if released else valid, b) for maps in (teacher, student)]
        if standardize:
            with np.errstate(invalid="ignore"):
                pair = [(m - m.mean(axis=0)) / (m.std(axis=0) + 1e-20) for m in pair]
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
