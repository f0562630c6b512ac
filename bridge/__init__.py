"""Stembridge: stems that live inside your DAW.

The rooms, from the top down (imports run downwards only):

``cli``
    the command line: the only room that prints or exits
``jobs``
    the life of a job: separate a clip, render its stems into a session
``separator``
    clips in, stems out, in bounded memory
``sessions``
    DAW sessions: read, place stems, undo
``audio``
    audio files, sample-rate conversion, times and names
``errors``
    the exception tree

Importing this package loads neither torch nor numpy.
"""

__version__ = "0.1.0"
