"""Separation networks, their weights, and the registry that gives them names.

``models.registry`` is the way in; importing it, or this package, does not import torch.
"""
