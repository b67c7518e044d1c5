"""Re-basin: average networks that were trained apart, after their neurons are brought into one order.

Averaging the weights of two networks that did not start from a common one gives a network that knows next to nothing:
what neuron 7 does in one, neuron 23 does in the other. Re-basin reorders each donor, which changes nothing of what it
computes, so that its weights lie near the given model's; averages; and gives the channels of the average the statistics
back that they lost in it. With pi_m the order found for donor m of M - 1, the given model being theta_1:

    pi_m   = argmax over orders of <theta_1, pi(theta_m)>    (or of the correlation of activations: `matching`)
    theta  = 1/M (theta_1 + sum_m pi_m(theta_m))
    then, channel by channel:  `renormalize(theta, [theta_1, pi_2(theta_2), ..], mode, all with 1/M)`

The groups of channels are found by watching a forward pass (`nn.permutation_spec`): perceptrons, plain and residual
convolutional networks with Batch-, Group-, Layer- and InstanceNorm; what is not understood is refused. `world.models`
holds the donors, networks or files, of the model's own architecture; `world.source` inputs for the statistics, of which
`samples` are used. `mode="none"` leaves statistics as averaged, `"reset_bn"` has BatchNorm's measured again, and
`"rescale"` is for layers without a bias.

Defaults: weight matching, which needs no data, and REPAIR on 200 samples. It needs width: at a few dozen channels a
layer a barrier remains, whatever the order, and at equal width deep networks have a higher one than shallow ones. The
average of two good networks is then still worse than either. Donors that were fine-tuned from the given model are in
its order already; average those directly.

>>> x = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
>>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
>>> spec = permutation_spec(net, x[:2])
>>> donor = spec.permuted(net, spec.random(torch.Generator().manual_seed(1)))
>>> merged = ReBasin(mode="none")(net, World(models={"donor": donor}, source=x))
>>> bool(torch.allclose(merged[0].weight, net[0].weight))
True

References: Ainsworth, Hayase, Srinivasa, Git re-basin: merging models modulo permutation symmetries, ICLR 2023; Qu,
Horvath, Rethink model re-basin and the linear mode connectivity, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from homeostat.core.errors import InputError
from homeostat.core.holding import holding
from homeostat.core.method import Card, Remedy
from homeostat.core.place import there
from homeostat.core.run import Run
from homeostat.core.spec import Count
from homeostat.core.weights import as_weights, weights
from homeostat.core.world import World
from homeostat.merge.barriers import blend
from homeostat.merge.matching import activation_match, weight_match
from homeostat.merge.merging import check_donors
from homeostat.nn.permutation import permutation_spec
from homeostat.nn.repair import renormalize


@dataclass(frozen=True)
class ReBasin(Remedy):
    """Averages the given model with `world.models`, brought into its order, and repairs the average's statistics.

    Attributes:
        matching: what tells which neurons belong together, `"weights"` or `"activations"`.
        mode: how statistics are repaired: `"repair"`, `"rescale"`, `"reshift"`, `"reset_bn"` or `"none"`.
        samples: of `world.source` that statistics and activations are taken from.
        sweeps: rounds of weight matching at most.
    """

    matching: Literal["weights", "activations"] = "weights"
    mode: Literal["repair", "rescale", "reshift", "reset_bn", "none"] = "repair"
    samples: Count = 200
    sweeps: Count = 100

    card: ClassVar[Card] = Card(
        id="S293", paper="Qu and Horvath, Rethink Model Re-Basin and the Linear Mode Connectivity, 2024",
        handles=frozenset({"tasks"}), needs=frozenset({"models.*", "source.x", "model.parameters"}), passes=0.0,
    )  # fmt: skip

    def apply(self, model: nn.Module, world: World, kit: Any, run: Run) -> nn.Module:
        data = world.source
        if data is None or len(data) == 0:
            raise InputError("re-basin reads world.source, which is empty; give some inputs, without labels")
        own = {name: t for name, t in weights(model).items() if t.is_floating_point()}
        donors = {name: as_weights(donor) for name, donor in world.models.items()}
        check_donors(own, donors)
        count = min(self.samples, len(data))
        some = data[(torch.arange(count) * len(data)) // count]
        spec = permutation_spec(model, some.fetch(torch.arange(min(2, count))).x)
        aligned = [model]
        for donor in donors.values():
            net = holding(model, there({name: donor[name] for name in own}, model))
            if self.matching == "weights":
                order = weight_match(model, net, spec, sweeps=self.sweeps)
            else:
                order = activation_match(model, net, some, spec)
            aligned.append(spec.permuted(net, order))
        shares = [1 / len(aligned)] * len(aligned)
        merged = holding(model, blend([weights(net) for net in aligned], shares))
        if self.mode == "none":
            return merged
        return renormalize(merged, [] if self.mode == "reset_bn" else aligned, some, self.mode, None, count)
