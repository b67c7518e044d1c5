"""What happens to data: corruptions, geometry, text noise, label shift, order, schedules."""

from homeostat.core.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
