from .adamerging import AdaMerging as AdaMerging
from .atlas import ATLAS as ATLAS
from .coefficients import (
    Combination as Combination,
    Learned as Learned,
    agreeing as agreeing,
    combine as combine,
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
from .encoder_tail import EncoderTail as EncoderTail
from .heads import with_head as with_head
from .ties import TIES as TIES, check_donors as check_donors, merge_ties as merge_ties
from .zoo import TASKS as TASKS, Zoo as Zoo, gloss_zoo as gloss_zoo, view as view, views_zoo as views_zoo
