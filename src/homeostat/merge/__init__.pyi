from .arithmetic import Average as Average, TaskArithmetic as TaskArithmetic
from .checkpoints import merge_checkpoints as merge_checkpoints
from .engine import check_donors as check_donors, merge_weights as merge_weights
from .merging import Merge as Merge
from .reports import MergeReport as MergeReport
from .sparse import DARE as DARE, DELLA as DELLA, Breadcrumbs as Breadcrumbs
from .spherical import SLERP as SLERP
from .stock import ModelStock as ModelStock
from .ties import TIES as TIES
