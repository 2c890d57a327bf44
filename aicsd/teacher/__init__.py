"""The frozen teacher: the network, its classes, how it is run, and the cache of its logits."""

from aicsd.teacher.class_map import is_nameless, with_classes
from aicsd.teacher.teacher import Teacher

__all__ = ["Teacher", "is_nameless", "with_classes"]
