from .aligned import KnOTS as KnOTS
from .arithmetic import Average as Average, TaskArithmetic as TaskArithmetic
from .emulated_tuning import EFT as EFT, Emulated as Emulated, emulate as emulate
from .engine import merge_weights as merge_weights
from .fisher_merging import FisherMerge as FisherMerge, fisher_merge as fisher_merge
from .interference import WUDI as WUDI
from .learngenes import (
    SWS as SWS,
    SharedBlock as SharedBlock,
    expand as expand,
    learngene as learngene,
    share_stages as share_stages,
    stage_map as stage_map,
)
from .merging import Merge as Merge, check_donors as check_donors
from .multilevel import (
    LevelMaps as LevelMaps,
    MultiLevel as MultiLevel,
    coalesce as coalesce,
    decoalesce as decoalesce,
    interpolate as interpolate,
    v_cycle as v_cycle,
)
from .regmean import RegMean as RegMean
from .sparse import DARE as DARE, DELLA as DELLA, Breadcrumbs as Breadcrumbs
from .spectral import TSVM as TSVM, IsoC as IsoC, IsoCTS as IsoCTS
from .spherical import SLERP as SLERP
from .stock import ModelStock as ModelStock
from .ties import TIES as TIES
from .weight_generation import D2NWG as D2NWG, WeightGenerator as WeightGenerator
from .wise_ft import WiSEFT as WiSEFT
