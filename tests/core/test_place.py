"""What lies where: on the strict device of the tests, which is itself tested first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from homeostat.adapt import BatchNormBlend, Tent
from homeostat.core.check import small_network, small_world
from homeostat.core.delta import delta
from homeostat.core.errors import InputError
from homeostat.core.fork import versions
from homeostat.core.online import Bag
from homeostat.core.place import HOME, check_device, device_of, home, placed, there
from homeostat.core.probe import outputs, prequential, read
from homeostat.core.run import Run
from homeostat.core.save import content_hash, load, save
from homeostat.fit import Fit, Recipe
from homeostat.nn.optimizers import Adam
from homeostat.probe import ECE, KS, Accuracy, ChangePoint, Entropy, OutlierShare


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3) + x,
        lambda x: torch.cat([x, torch.ones(1, 3)]),
        lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda x: torch.tensor(1.0).add_(x.sum()),
        lambda x: nn.Linear(3, 2)(x),
        lambda x: torch.arange(3)[x[0].long()],
        lambda x: x.index_put((torch.tensor([0]),), torch.ones(3)),
        lambda x: x.normal_(generator=torch.Generator()),
        lambda x: torch.rand(3, generator=torch.Generator(), device="strict"),
    ],
)
def test_the_device_refuses_what_a_gpu_refuses(mix, strict):
    x = torch.zeros(2, 3).to("strict")
    with pytest.raises(RuntimeError, match=r"on the same device|device type for generator"):
        mix(x)


def test_the_device_computes_as_the_cpu_and_allows_what_a_gpu_allows(strict):
    net, x = small_network(), torch.rand(5, 1, 8, 8)
    away = placed(net, "strict")
    loss = away(there(x, away)).square().sum()
    loss.backward()
    net(x).square().sum().backward()
    assert loss.device.type == "strict" and float(loss.detach()) == float(net(x).detach().square().sum())
    for here, far in zip(net.parameters(), away.parameters(), strict=True):
        assert far.grad is not None and here.grad is not None and torch.equal(far.grad.cpu(), here.grad)
    far = there(x, away)
    assert torch.equal(home(far[torch.tensor([1, 0])] * torch.tensor(2.0)), x[[1, 0]] * 2)
    with pytest.raises(TypeError, match="numpy"):
        far.numpy()


def test_what_is_there_already_is_not_copied():
    net, x = nn.Linear(2, 2), torch.zeros(3, 2)
    assert there(x, net) is x and home(x) is x
    assert placed(net, None) is net and placed(net, "cpu") is net
    assert device_of(nn.ReLU()) is None and there(x, nn.ReLU()) is x


def test_placing_a_network_leaves_the_given_one_where_it_was(strict):
    net = small_network()
    before = versions(net)
    away = placed(net, "strict")
    assert versions(net) == before and device_of(net) == HOME
    assert {t.device.type for t in away.state_dict().values()} == {"strict"}
    assert content_hash(away) == content_hash(net)


@pytest.mark.parametrize(
    ("device", "said"),
    [("nowhere", "no such kind of device"), ("cuda:99", "cuda:99"), ("meta", "meta"), ("", "cannot be used")],
)
def test_a_device_that_cannot_be_used_is_refused_by_name(device, said):
    with pytest.raises(InputError, match=rf"^device {device} cannot be used here.*leave it out for the CPU$") as error:
        check_device(device)
    assert said in str(error.value)


def test_a_checkpoint_goes_where_its_base_lies_or_where_it_is_sent(tmp_path, strict):
    net, world = small_network(), small_world()
    tent = Tent()(placed(net, "strict"), world)
    batch = next(world.target.batches(12)).replace(y=None)
    tent.observe(batch.to("strict"))
    save(tent, tmp_path / "tent")
    away, back = load(tmp_path / "tent", base=placed(net, "strict")), load(tmp_path / "tent")
    sent = load(tmp_path / "tent", device="strict")
    assert [device_of(model).type for model in (away, sent, back)] == ["strict", "strict", "cpu"]
    expected = back.observe(batch)
    for model in (tent, away, sent):
        assert torch.equal(home(model.observe(batch.to("strict"))), expected)


def test_one_pass_brings_data_to_the_network_and_readings_are_those_of_the_cpu(strict):
    net, world = small_network(), small_world()
    away, probes = placed(net, "strict"), [Accuracy(), Entropy(), ECE(), KS(), ChangePoint(window=5), OutlierShare()]
    for here, far in zip(read(probes, net, world), read(probes, away, world), strict=True):
        assert (here.name, here.value, here.interval) == (far.name, far.value, far.interval)
    assert outputs(away, world.held).logits.device.type == "strict"
    tents = Tent()(net, world), Tent()(away, world)
    here, far = (prequential(tent, world.held, batch=12).logits for tent in tents)
    assert torch.equal(here, home(far)) and not torch.equal(here, outputs(net, world.held).logits)


def test_a_kit_follows_the_network_from_the_cache_too(tmp_path, strict):
    net, world, run = small_network(), small_world(), Run(scratch=tmp_path)
    kit = KS().kit(net, world, run=run)
    again = KS().kit(placed(net, "strict"), world, run=run)
    assert isinstance(kit, Bag) and len(list((tmp_path / "kits").iterdir())) == 1
    assert {tensor.device.type for tensor in again.state_dict().values()} == {"strict"}
    # One that was made elsewhere is taken too, and stays as it is.
    assert KS()(placed(net, "strict"), world, kit=kit).value == KS()(net, world).value
    assert {tensor.device.type for tensor in kit.state_dict().values()} == {"cpu"}


def test_training_that_stopped_goes_on_on_another_device(tmp_path, strict, monkeypatch):
    class Stop(Exception):
        pass

    def trained(net: nn.Module, run: Run) -> nn.Module:
        return Fit(recipe=Recipe(epochs=4, batch=16, optimizer=Adam(lr=0.01)))(net, small_world(), run=run)

    def stopping(event) -> None:
        if event.name == "train" and event.step == 7:
            raise Stop

    whole = trained(small_network(), Run())
    with pytest.raises(Stop):
        trained(placed(small_network(), "strict"), Run(scratch=tmp_path, watch=stopping))
    assert list((tmp_path / "fit").glob("*.part")), "the first epochs are kept"
    steps = []
    resumed = trained(small_network(), Run(scratch=tmp_path, watch=lambda event: steps.append(event.step)))
    assert steps[0] == 6
    assert content_hash(resumed) == content_hash(whole)


def test_training_restores_the_generators_of_the_process_and_of_the_device(strict):
    net = placed(small_network(), "strict")
    torch.manual_seed(11)
    before = torch.get_rng_state(), torch.strict.get_rng_state(0)
    Fit(recipe=Recipe(batch=16))(net, small_world())
    after = torch.get_rng_state(), torch.strict.get_rng_state(0)
    assert int(before[1]) == 11
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))


def test_counts_of_steps_come_back_to_the_cpu(strict):
    weight = {"w": torch.ones(3, device="strict")}
    bag, adam = Bag(), Adam(lr=0.1)
    adam.begin(weight, bag)
    bag.to("strict")
    adam.update(weight, {"w": torch.ones(3, device="strict")}, bag)
    assert bag["optimizer.step"].device == HOME and bag["optimizer.mean.w"].device.type == "strict"


def test_a_change_that_was_taken_on_one_device_applies_on_another(strict):
    net = small_network()
    blended = BatchNormBlend(blend=0.5)(net, small_world())
    away = delta(net, blended).apply(placed(net, "strict"))
    x = small_world().target.load().x
    assert torch.equal(home(away(there(x, away))), blended(x))
