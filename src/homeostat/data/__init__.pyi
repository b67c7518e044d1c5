from .archives import npz as npz, write_npz as write_npz
from .cifar import cifar10 as cifar10
from .fashion import fashion_mnist as fashion_mnist
from .folders import image_folder as image_folder
from .handwriting import digits as digits, mnist as mnist
from .hub import huggingface as huggingface
from .label_metric import (
    CompleteMetric as CompleteMetric,
    LabelMetric as LabelMetric,
    PointMetric as PointMetric,
    TreeMetric as TreeMetric,
    WordNetMetric as WordNetMetric,
)
from .link_loads import LinkLoads as LinkLoads, routes as routes
from .pixels import Pixels as Pixels
from .reader import (
    CIFAR10 as CIFAR10,
    MNIST as MNIST,
    NPZ as NPZ,
    Digits as Digits,
    FashionMNIST as FashionMNIST,
    Glosses as Glosses,
    HuggingFace as HuggingFace,
    ImageFolder as ImageFolder,
    Reader as Reader,
    below as below,
)
from .shifted import Shifted as Shifted
from .sources import as_reader as as_reader
from .strings import Strings as Strings
from .tables import Table as Table, TableEncoding as TableEncoding, frame as frame
from .tokenizers import ByteTokenizer as ByteTokenizer, WordTokenizer as WordTokenizer
from .wordnet import glosses as glosses, hypernyms as hypernyms
