from .pgd import PGD as PGD, ascend as ascend, project as project
from .trades import TRADES as TRADES
