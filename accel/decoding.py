"""`Decoding` under the name by which saved folders and method classes know its module."""

from visual_ar.accel.loop.contract import Decoding

__all__ = ["Decoding"]
