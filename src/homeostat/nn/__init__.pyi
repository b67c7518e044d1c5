from .augment import RandomViews as RandomViews
from .causal_transformer import CausalTransformer as CausalTransformer
from .estimator import Estimator as Estimator
from .fisher import fisher_diagonal as fisher_diagonal
from .kernels import (
    median_bandwidth as median_bandwidth,
    mmd2 as mmd2,
    mmd2_memberships as mmd2_memberships,
    mmd2_permutation as mmd2_permutation,
    off_diagonal_mean as off_diagonal_mean,
    pairwise_sq as pairwise_sq,
    rbf as rbf,
)
from .minilm import MiniLM as MiniLM
from .mlp import MLP as MLP
from .normalized import Normalized as Normalized
from .norms import (
    BlendedBatchNorm as BlendedBatchNorm,
    batch_statistics as batch_statistics,
    blend_batchnorm as blend_batchnorm,
    norm_affine as norm_affine,
    recorded_statistics as recorded_statistics,
)
from .optimizers import SGD as SGD, Adam as Adam, Optimizer as Optimizer
from .places import cache_folder as cache_folder, locate as locate
from .resnet import ResNet as ResNet, cifar_resnet as cifar_resnet
from .small_cnn import SmallCNN as SmallCNN
from .teacher import average_into as average_into
from .transformers_models import Transformers as Transformers
from .vit import SmallViT as SmallViT
