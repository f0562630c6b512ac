"""Clips in, stems out: any rate, any channel count, any length, in bounded memory.

``separate``
    :func:`~bridge.separator.separate.separate`, the way from a clip's blocks to its stems'
``overlap_add``
    segments out of a stream and back into one
``channels``
    any channel count in front of a stereo model
``network``
    a loaded model as a function of arrays: the only file here that imports torch
"""

from bridge.separator.separate import (
    SeparatedBlock,
    SeparationOptions,
    StemModel,
    choose_stems,
    separate,
)

__all__ = [
    "SeparatedBlock",
    "SeparationOptions",
    "StemModel",
    "choose_stems",
    "separate",
]
