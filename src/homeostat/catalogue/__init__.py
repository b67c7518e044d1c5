"""The catalogue: published systems, which of them run here, and which may be of use in a situation."""

from homeostat.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
