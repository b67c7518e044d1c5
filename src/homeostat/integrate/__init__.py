"""Other tools' side of the library: training callbacks, experiment trackers, monitoring."""

from homeostat.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
