from .arithmetic import Average as Average, TaskArithmetic as TaskArithmetic
from .engine import check_donors as check_donors, merge_weights as merge_weights
from .merging import Merge as Merge
from .sparse import DARE as DARE, DELLA as DELLA, Breadcrumbs as Breadcrumbs
from .spherical import SLERP as SLERP
from .stock import ModelStock as ModelStock
from .ties import TIES as TIES
