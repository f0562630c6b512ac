"""The errors of the models.

::

    ModelError
    ├── UnknownModel      no model of that name
    ├── CheckpointError   a model's files cannot be read or trusted
    └── FetchError        a model could not be downloaded (models.download)

``str(error)`` is one line for a user: what is wrong, in which file, and what to do.
"""

from __future__ import annotations

__all__ = ["CheckpointError", "ModelError", "UnknownModel"]


class ModelError(Exception):
    """Base of all errors that ``models`` raises on purpose."""


class UnknownModel(ModelError):
    """No model has the name that was asked for."""


class CheckpointError(ModelError):
    """A model's card or weights cannot be read or trusted."""
