"""What papers claim, as small experiments: stated before they are run, run with several seeds, judged, recorded."""

from homeostat.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
