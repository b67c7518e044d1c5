from .adamerging import AdaMerging as AdaMerging
from .coefficients import (
    Combination as Combination,
    Learned as Learned,
    agreeing as agreeing,
    combine as combine,
    task_vectors as task_vectors,
)
from .heads import with_head as with_head
from .ties import TIES as TIES, check_donors as check_donors, merge_ties as merge_ties
