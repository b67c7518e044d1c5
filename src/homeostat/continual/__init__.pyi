from .acil import ACIL as ACIL, AnalyticHead as AnalyticHead
