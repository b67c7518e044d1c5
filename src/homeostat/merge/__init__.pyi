from .emulated_tuning import EFT as EFT, Emulated as Emulated, emulate as emulate
from .multilevel import (
    LevelMaps as LevelMaps,
    MultiLevel as MultiLevel,
    coalesce as coalesce,
    decoalesce as decoalesce,
    interpolate as interpolate,
    v_cycle as v_cycle,
)
from .ties import TIES as TIES, check_donors as check_donors, merge_ties as merge_ties
