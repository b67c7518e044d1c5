from .pgd import PGD as PGD, ascend as ascend, project as project
from .poisoning import BatchPoisoning as BatchPoisoning
from .trades import TRADES as TRADES
