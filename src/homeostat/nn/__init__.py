"""Layers, backbones, losses, optimisers, normalisation, kernels: what several problems need."""

from homeostat.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
