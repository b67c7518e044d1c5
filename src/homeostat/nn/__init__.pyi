from .norms import BlendedBatchNorm as BlendedBatchNorm, blend_batchnorm as blend_batchnorm, norm_affine as norm_affine
from .optimizers import SGD as SGD, Adam as Adam, Optimizer as Optimizer
from .teacher import average_into as average_into
