from .ties import TIES as TIES, check_donors as check_donors, merge_ties as merge_ties
