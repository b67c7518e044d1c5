from .chunks import ChunkedOrder as ChunkedOrder
from .corrupt import Corrupt as Corrupt
from .corruption import COMMON as COMMON, EXTRA as EXTRA, FAMILIES as FAMILIES
from .geometry import Rotate as Rotate, Scale as Scale, Translate as Translate
from .label import CorrelatedOrder as CorrelatedOrder, LabelShift as LabelShift
from .pointwise import Pointwise as Pointwise
from .schedule import Clean as Clean, Compose as Compose, Gradual as Gradual, Mixed as Mixed, Phases as Phases
from .spurious import SpuriousColor as SpuriousColor
from .text import CharacterNoise as CharacterNoise, TextShift as TextShift, WordNoise as WordNoise
from .undersample import Undersample as Undersample
