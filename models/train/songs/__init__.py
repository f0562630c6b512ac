"""Rendering of multitrack training songs from free instruments.

A song is made from a seed alone: `arrangement` writes the notes, `instruments`, `drums` and
`singing` turn them into sound, `mixing` balances the stems, `render` puts a song together and
stores it. `assets` names every sound font, drum kit and voice, and says which of them are held
out of training. ``python -m models.train.songs --help`` is the way in.
"""

from __future__ import annotations
