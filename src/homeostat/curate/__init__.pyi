from .dcc import (
    DCC as DCC,
    class_mean_loss as class_mean_loss,
    gradient_distance as gradient_distance,
    matching as matching,
)
from .siamese import DSA as DSA
