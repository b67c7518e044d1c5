from . import (
    adapt as adapt,
    bench as bench,
    catalogue as catalogue,
    continual as continual,
    curate as curate,
    data as data,
    evidence as evidence,
    fit as fit,
    integrate as integrate,
    loop as loop,
    merge as merge,
    nn as nn,
    probe as probe,
    robust as robust,
    select as select,
    shift as shift,
    trust as trust,
    tune as tune,
)
from .core import errors as errors
from .core.check import check_probe as check_probe, check_remedy as check_remedy, check_shift as check_shift
from .core.configfile import read_spec as read_spec, write_spec as write_spec
from .core.data import (
    UNKNOWN as UNKNOWN,
    Batch as Batch,
    Data as Data,
    Joined as Joined,
    Subset as Subset,
    Tensors as Tensors,
    Unlabelled as Unlabelled,
    join as join,
)
from .core.delta import Delta as Delta, delta as delta
from .core.fork import fork as fork, targets as targets, unwrap as unwrap, versions as versions
from .core.intake import as_data as as_data
from .core.method import Card as Card, Chain as Chain, Method as Method, Remedy as Remedy, Shift as Shift
from .core.online import Bag as Bag, Live as Live, Online as Online
from .core.part import Part as Part, recipe as recipe, replace as replace
from .core.probe import (
    Outputs as Outputs,
    Probe as Probe,
    measure as measure,
    outputs as outputs,
    prequential as prequential,
    read as read,
)
from .core.random import Draw as Draw
from .core.reading import Finding as Finding, Interval as Interval, Reading as Reading, Readings as Readings
from .core.run import Budget as Budget, Event as Event, Run as Run
from .core.save import content_hash as content_hash, load as load, save as save
from .core.spec import Spec as Spec, find as find, from_config as from_config, names as names, registered as registered
from .core.taps import tap as tap, tapped as tapped
from .core.task import (
    Classify as Classify,
    MultiLabel as MultiLabel,
    Regress as Regress,
    Segment as Segment,
    Task as Task,
    Tokens as Tokens,
)
from .core.trace import Choose as Choose, Entry as Entry, Trace as Trace
from .core.watched import CheckFailed as CheckFailed
from .core.weights import Weights as Weights, as_weights as as_weights, fingerprint as fingerprint, weights as weights
from .core.world import World as World
