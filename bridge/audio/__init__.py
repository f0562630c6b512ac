"""Audio files, sample-rate conversion, times and file names: the ground floor.

``source``
    :class:`ClipAudio`: a clip, read in blocks from the files of its channels
``writer``
    :class:`StemWriter`: a file that appears under its name only when whole and verified
``wav``
    the Broadcast WAV header
``resample``
    :class:`Resampler`: streaming sample-rate conversion with exact alignment
``timecode``
    ``1:07.250``, seconds or ``336000f`` to frames
``names``
    file names that every system takes

Arrays are float32 ``(channels, frames)``; the libraries' ``(frames, channels)`` stays inside.
"""
