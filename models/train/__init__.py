"""Rendering songs, training networks on them, and measuring how well they separate.

Nothing outside this package imports it. README.md in this folder tells how to repeat a training.
"""
