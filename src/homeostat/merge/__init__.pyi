from .arithmetic import Average as Average, TaskArithmetic as TaskArithmetic
from .engine import check_donors as check_donors, merge_weights as merge_weights
from .merging import Merge as Merge
from .ties import TIES as TIES
