"""Grids of methods, and what may be said of their results."""

from homeostat.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
