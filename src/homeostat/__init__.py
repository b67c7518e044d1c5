"""homeostat keeps a trained neural network working when the world it meets changes."""

from homeostat.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
