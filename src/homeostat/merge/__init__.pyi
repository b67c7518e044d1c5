from .barriers import Barrier as Barrier, barrier as barrier, blend as blend
from .matching import (
    activation_match as activation_match,
    alikeness as alikeness,
    assign as assign,
    weight_match as weight_match,
)
from .rebasin import ReBasin as ReBasin
from .teleportation import (
    Teleport as Teleport,
    Teleported as Teleported,
    Teleporting as Teleporting,
    teleport as teleport,
)
from .ties import TIES as TIES, check_donors as check_donors, merge_ties as merge_ties
