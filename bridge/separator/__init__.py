"""Clips in, stems out: any rate, any channel count, any length, in bounded memory.

``separate``
    :func:`~bridge.separator.separate.separate`, the way from a clip's blocks to its stems'
``model``
    what is asked of a model: :class:`~bridge.separator.model.StemModel`
``plan``
    where its networks listen
``overlap_add``
    segments out of a stream and back into one
``channels``
    any channel count in front of a stereo model
``presets``
    names for settings that belong together
``network``
    a loaded model as a function of arrays: the only file here that imports torch
"""

from bridge.separator.model import HasStems, SegmentModel, StemModel, choose_stems
from bridge.separator.separate import SeparatedBlock, SeparationOptions, separate

__all__ = [
    "HasStems",
    "SegmentModel",
    "SeparatedBlock",
    "SeparationOptions",
    "StemModel",
    "choose_stems",
    "separate",
]
