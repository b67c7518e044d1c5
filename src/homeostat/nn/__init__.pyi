from .augment import RandomViews as RandomViews
from .augmix import AugMix as AugMix
from .banks import (
    Balanced as Balanced,
    Bank as Bank,
    Reservoir as Reservoir,
    Ring as Ring,
    as_rows as as_rows,
    as_tree as as_tree,
)
from .block_stack import Sizes as Sizes, resized as resized, sizes_of as sizes_of, stack_of as stack_of
from .causal_transformer import CausalTransformer as CausalTransformer
from .decoding import (
    Drafted as Drafted,
    remainder as remainder,
    sample_tokens as sample_tokens,
    speculative_sample as speculative_sample,
)
from .destroy import (
    Destroyed as Destroyed,
    Occluded as Occluded,
    ShuffledPatches as ShuffledPatches,
    ShuffledPixels as ShuffledPixels,
)
from .diffusion import DDPM as DDPM, VectorDenoiser as VectorDenoiser, kept_signal as kept_signal
from .estimator import Estimator as Estimator
from .fisher import fisher_diagonal as fisher_diagonal, weighted_distance as weighted_distance
from .fourier import (
    column_masks as column_masks,
    data_consistency as data_consistency,
    estimate_noise as estimate_noise,
    to_frequencies as to_frequencies,
    to_image as to_image,
)
from .hyperdimensional import (
    hypervectors as hypervectors,
    pack_signs as pack_signs,
    projection as projection,
    similarity as similarity,
    unpack_signs as unpack_signs,
)
from .image_domains import domain_channels as domain_channels, middle_domains as middle_domains
from .kernels import (
    median_bandwidth as median_bandwidth,
    mmd2 as mmd2,
    mmd2_memberships as mmd2_memberships,
    mmd2_permutation as mmd2_permutation,
    off_diagonal_mean as off_diagonal_mean,
    pairwise_sq as pairwise_sq,
    rbf as rbf,
)
from .linear_pairs import (
    LinearPair as LinearPair,
    find_linear_pairs as find_linear_pairs,
    linear_inputs as linear_inputs,
)
from .liquid import LTC as LTC, CfC as CfC, Recurrent as Recurrent
from .losses import (
    contrastive_loss as contrastive_loss,
    marginal_entropy as marginal_entropy,
    soft_cross_entropy as soft_cross_entropy,
    soft_likelihood_ratio as soft_likelihood_ratio,
    softmax_entropy as softmax_entropy,
    symmetric_cross_entropy as symmetric_cross_entropy,
)
from .low_rank_layers import correction as correction, low_rank as low_rank, new_factors as new_factors
from .minilm import MiniLM as MiniLM
from .mlp import MLP as MLP
from .new_head import with_new_head as with_new_head
from .normalized import Normalized as Normalized
from .norms import (
    BlendedBatchNorm as BlendedBatchNorm,
    batch_statistics as batch_statistics,
    batchnorm_statistics as batchnorm_statistics,
    blend_batchnorm as blend_batchnorm,
    grouped_statistics as grouped_statistics,
    moving_statistics as moving_statistics,
    norm_affine as norm_affine,
    recorded_statistics as recorded_statistics,
)
from .optimizers import SGD as SGD, Adam as Adam, Optimizer as Optimizer, gradients_of as gradients_of
from .permutation import (
    ChannelGroup as ChannelGroup,
    ChannelPlace as ChannelPlace,
    PermutationSpec as PermutationSpec,
    permutation_spec as permutation_spec,
)
from .places import cache_folder as cache_folder, locate as locate
from .prototypes import class_means as class_means, class_prototypes as class_prototypes
from .renormalized import (
    RenormalizedBatchNorm as RenormalizedBatchNorm,
    following_statistics as following_statistics,
    norm_state as norm_state,
    renormalize_batchnorm as renormalize_batchnorm,
)
from .repair import renormalize as renormalize
from .resnet import ResNet as ResNet, cifar_resnet as cifar_resnet
from .restoring import (
    put_back as put_back,
    random_masks as random_masks,
    restore_into as restore_into,
    smallest_masks as smallest_masks,
)
from .set_transformer import DatasetEncoder as DatasetEncoder, SetTransformer as SetTransformer
from .sharpness import worst_nearby as worst_nearby
from .small_cnn import SmallCNN as SmallCNN
from .teacher import average_into as average_into
from .temperature import honest_scale as honest_scale
from .transformers_models import Transformers as Transformers
from .unrolled import Denoiser as Denoiser, Unrolled as Unrolled
from .vae import ChunkVAE as ChunkVAE, clip_loss as clip_loss
from .views import view_outputs as view_outputs
from .vit import SmallViT as SmallViT
from .zero_cost import activation_diversity as activation_diversity, gradient_flow as gradient_flow
