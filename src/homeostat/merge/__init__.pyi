from .emulated_tuning import EFT as EFT, Emulated as Emulated, emulate as emulate
from .learngenes import (
    SWS as SWS,
    SharedBlock as SharedBlock,
    expand as expand,
    learngene as learngene,
    share_stages as share_stages,
    stage_map as stage_map,
)
from .multilevel import (
    LevelMaps as LevelMaps,
    MultiLevel as MultiLevel,
    coalesce as coalesce,
    decoalesce as decoalesce,
    interpolate as interpolate,
    v_cycle as v_cycle,
)
from .ties import TIES as TIES, check_donors as check_donors, merge_ties as merge_ties
from .weight_generation import D2NWG as D2NWG, WeightGenerator as WeightGenerator
