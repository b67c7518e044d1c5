from .ties import TIES as TIES, check_donors as check_donors
