from .adamerging import AdaMerging as AdaMerging
from .aligned import KnOTS as KnOTS
from .arithmetic import Average as Average, TaskArithmetic as TaskArithmetic
from .atlas import ATLAS as ATLAS
from .barriers import Barrier as Barrier, barrier as barrier, blend as blend
from .checkpoints import merge_checkpoints as merge_checkpoints
from .coefficients import (
    Combination as Combination,
    Learned as Learned,
    agreeing as agreeing,
    task_vectors as task_vectors,
)
from .diagnosis import (
    cosine as cosine,
    diagnose as diagnose,
    recovered as recovered,
    sign_conflict as sign_conflict,
    subspace_alignment as subspace_alignment,
    variance_ratio as variance_ratio,
)
from .emulated_tuning import EFT as EFT, Emulated as Emulated, emulate as emulate
from .encoder_tail import EncoderTail as EncoderTail
from .engine import merge_weights as merge_weights
from .fisher_merging import FisherMerge as FisherMerge, fisher_merge as fisher_merge
from .heads import with_head as with_head
from .interference import WUDI as WUDI
from .learngenes import (
    SWS as SWS,
    SharedBlock as SharedBlock,
    expand as expand,
    learngene as learngene,
    share_stages as share_stages,
    stage_map as stage_map,
)
from .matching import (
    activation_match as activation_match,
    alikeness as alikeness,
    assign as assign,
    weight_match as weight_match,
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
from .plans import merge_plan as merge_plan
from .rebasin import ReBasin as ReBasin
from .regmean import RegMean as RegMean
from .reports import MergeReport as MergeReport
from .sparse import DARE as DARE, DELLA as DELLA, Breadcrumbs as Breadcrumbs
from .spectral import TSVM as TSVM, IsoC as IsoC, IsoCTS as IsoCTS
from .spherical import SLERP as SLERP
from .stock import ModelStock as ModelStock
from .teleportation import (
    Teleport as Teleport,
    Teleported as Teleported,
    Teleporting as Teleporting,
    teleport as teleport,
)
from .ties import TIES as TIES
from .weight_generation import D2NWG as D2NWG, WeightGenerator as WeightGenerator
from .wise_ft import WiSEFT as WiSEFT
from .zoo import (
    TASKS as TASKS,
    Zoo as Zoo,
    digits_zoo as digits_zoo,
    gloss_zoo as gloss_zoo,
    view as view,
    views_zoo as views_zoo,
)  # fmt: skip
