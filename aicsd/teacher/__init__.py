"""The frozen teacher: the network, how it is run, and the cache of its logits."""

from aicsd.teacher.teacher import Teacher

__all__ = ["Teacher"]
