from .fit import Fit as Fit
from .objective import Objective as Objective, Supervised as Supervised, Weighted as Weighted
from .posterior import SWAG as SWAG, Posterior as Posterior
from .step import (
    SAM as SAM,
    Combine as Combine,
    PCGrad as PCGrad,
    Plain as Plain,
    Step as Step,
    Sum as Sum,
    ZerothOrder as ZerothOrder,
)
from .training import (
    Constant as Constant,
    Cosine as Cosine,
    Ramp as Ramp,
    Recipe as Recipe,
    Schedule as Schedule,
    Steps as Steps,
    train as train,
)
