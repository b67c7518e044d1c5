from .conformal import (
    Conformal as Conformal,
    ConformalSets as ConformalSets,
    conformal_threshold as conformal_threshold,
    coverage as coverage,
    nonconformity as nonconformity,
    set_size as set_size,
)
from .rct import RCT as RCT, FreshHead as FreshHead, soft_sort as soft_sort
from .rscp import (
    PTT as PTT,
    RSCP as RSCP,
    RobustSets as RobustSets,
    empirical_bernstein as empirical_bernstein,
    hoeffding as hoeffding,
    robust_sets as robust_sets,
)
