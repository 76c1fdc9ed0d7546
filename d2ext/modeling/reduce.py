"""The old place of :mod:`d2ext.ops.reduce`."""

from d2ext.ops.reduce import Deferred, deferring, reduce_later, reduce_mean, reduce_sum

__all__ = ["Deferred", "deferring", "reduce_later", "reduce_mean", "reduce_sum"]
