"""Merging checkpoints on the disk: equal to merging in memory; misfits all at once; a kill leaves no trace."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from homeostat.core.check import small_network
from homeostat.core.errors import CheckpointError, DtypeError, InputError, NonFiniteError
from homeostat.core.fork import fork
from homeostat.core.mapped import INDEX, Mapped
from homeostat.core.run import Event, Run
from homeostat.core.save import content_hash, load, save
from homeostat.core.world import World
from homeostat.merge import (
    DARE,
    SLERP,
    TIES,
    Average,
    Breadcrumbs,
    Merge,
    ModelStock,
    TaskArithmetic,
    merge_checkpoints,
    merge_weights,
)
from homeostat.tune import LoRA
from tests.merge.on_disk import TOKENS, family, llama, put

METHODS: list[Merge] = [
    Average(weights=(1.0, 3.0)), TaskArithmetic(), TIES(density=0.4), TIES(density=0.3, scope="tensor"), SLERP(t=0.3),
    DARE(elect=True), Breadcrumbs(), ModelStock(),
]  # fmt: skip


def digest(folder: Path) -> str:
    """Of all files of a folder."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sha.update(path.name.encode() + path.read_bytes())
    return sha.hexdigest()


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("shards", [1, 3])
def test_gives_the_same_numbers_as_in_memory_however_inputs_are_cut_into_files(tmp_path, method, shards):
    base, donors = family(tmp_path, shards=shards)
    report = merge_checkpoints(method, base, donors, tmp_path / "out", shard=4000)
    read = [dict(sorted(Mapped(path).items())) for path in (base, *donors)]
    wanted = merge_weights(method, read[0], read[1:])
    found = Mapped(tmp_path / "out")
    assert set(found) == set(wanted) and (tmp_path / "out" / INDEX).is_file()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert report.merged == len(wanted) and report.copied == 0
    assert report.written == sum(t.numel() * 4 for t in wanted.values())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_written_in_what_is_asked_for(tmp_path, stored):
    base, donors = family(tmp_path, dtype=stored)
    read = [{n: t.float() for n, t in Mapped(path).items()} for path in (base, *donors)]
    wanted = merge_weights(TaskArithmetic(), read[0], read[1:])
    merge_checkpoints(TaskArithmetic(), base, donors, tmp_path / "same")
    merge_checkpoints(TaskArithmetic(), base, donors, tmp_path / "wide", dtype="float32")
    same, wide = Mapped(tmp_path / "same"), Mapped(tmp_path / "wide")
    assert all(torch.equal(wide[name], tensor) for name, tensor in wanted.items())
    assert all(torch.equal(same[name], tensor.to(stored)) for name, tensor in wanted.items())
    told = [json.loads((tmp_path / out / "config.json").read_text())["torch_dtype"] for out in ("same", "wide")]
    assert told == [str(stored).removeprefix("torch."), "float32"]
    with pytest.raises(DtypeError, match="it can be float64, float32, bfloat16, float16"):
        merge_checkpoints(TaskArithmetic(), base, donors, tmp_path / "out", dtype="float61")


def test_dtypes_may_differ_which_is_said(tmp_path):
    base = put(tmp_path / "base", llama(), dtype=torch.bfloat16)
    donor = put(tmp_path / "donor", llama(seed=1), dtype=torch.float32)
    report = merge_checkpoints(Average(), base, [donor], tmp_path / "out")
    assert "donor is float32 where the base is bfloat16; bfloat16 is written: " in report.notes[0]
    found, wanted = Mapped(tmp_path / "out"), Mapped(donor)
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in wanted.items())


def test_whole_numbers_statistics_and_what_is_skipped_stay_the_bases_bit_for_bit(tmp_path):
    odd = {
        "steps": torch.tensor([2**53 + 1, -5]), "bn.running_mean": torch.randn(3), "mask": torch.tensor([True, False]),
        "bn.weight": torch.randn(3), "bias.inf": torch.tensor([float("-inf"), float("nan")]),
    }  # fmt: skip
    other = {name: tensor + 1 if tensor.dtype != torch.bool else ~tensor for name, tensor in odd.items()}
    for name, tensors in {"base": odd, "donor": other}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    out = tmp_path / "out.safetensors"
    merge_checkpoints(
        Average(skip=("bias.*",)), tmp_path / "base.safetensors", [tmp_path / "donor.safetensors"], out,
    )  # fmt: skip
    found = load_file(out)
    assert torch.equal(found["steps"], odd["steps"]) and torch.equal(found["mask"], odd["mask"])
    assert torch.equal(found["bn.running_mean"], odd["bn.running_mean"])
    assert torch.equal(found["bias.inf"].view(torch.int32), odd["bias.inf"].view(torch.int32))
    assert torch.equal(found["bn.weight"], other["bn.weight"])


def test_a_base_that_save_wrote_gives_what_load_reads_as_the_remedy_gives_it(tmp_path):
    net = small_network()
    net.append(nn.Linear(net[5].out_features, net[5].in_features))
    net.append(nn.Linear(*net[5].weight.shape[::-1]))
    net[7].weight = net[5].weight
    donors = {}
    for i in range(2):
        donors[f"d{i}"] = other = fork(net, own="*")
        with torch.no_grad():
            for p in other.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)), alpha=0.1)
            other[1].running_mean += 1
    for name, model in {"base": net, **donors}.items():
        save(model, tmp_path / name)
    merge_checkpoints(TIES(), tmp_path / "base", {n: tmp_path / n for n in donors}, tmp_path / "out")
    merged, wanted = load(tmp_path / "out", verify=True), TIES()(net, World(models=donors))
    assert content_hash(merged) == content_hash(wanted)
    assert merged[7].weight.data_ptr() == merged[5].weight.data_ptr()


# --------------------------------------------------------------------------------------------------------- preflight


def refused(match: str, *arguments: object, **more: object) -> str:
    with pytest.raises(CheckpointError, match=match) as error:
        merge_checkpoints(*arguments, **more)
    return str(error.value)


def test_every_misfit_is_said_at_once_with_what_to_do_and_nothing_is_written(tmp_path):
    tensors = llama()
    base = put(tmp_path / "base", tensors)
    lacks = {n: t for n, t in tensors.items() if ".1.mlp" not in n}
    wide = {n: torch.ones(3, 3) if "q_proj" in n else t for n, t in tensors.items()}
    more = {
        n: torch.cat([t, t[:2]]) if n.startswith(("model.embed", "lm_head")) else t for n, t in tensors.items()
    } | {"value.weight": torch.ones(2)}  # fmt: skip
    coded = {n: (t * 9).to(torch.int8) if "up_proj" in n else t for n, t in tensors.items()}
    donors = {
        name: put(tmp_path / name, made)
        for name, made in {"lacks": lacks, "wide": wide, "more": more, "coded": coded}.items()
    }
    text = refused("nothing was written", TIES(), base, donors, tmp_path / "out")
    for part in (
        "lacks lacks model.layers.1.mlp.", "keep the base's there (skip)",
        "wide has other shapes", "model.layers.0.self_attn.q_proj.weight [3, 3] for [16, 16]",
        f"more has {TOKENS + 2} tokens and the base {TOKENS}", f"resize_token_embeddings({TOKENS})",
        "more has what the base lacks", "value.weight",
        "coded has whole numbers where the base has fractions", "(5)",
    ):  # fmt: skip
        assert part in text, (part, text)
    assert "\n" not in text and sorted(p.name for p in tmp_path.iterdir()) == ["base", *sorted(donors)]
    skip = ("*embed*", "lm_head*")
    report = merge_checkpoints(
        TIES(skip=skip), base, {"more": donors["more"]}, tmp_path / "out", ignore=("value.*",)
    )  # fmt: skip
    assert report.copied == 2
    assert torch.equal(Mapped(tmp_path / "out")["lm_head.weight"], tensors["lm_head.weight"])


def test_names_that_differ_by_what_stands_before_them_are_recognised(tmp_path):
    tensors = llama()
    base = put(tmp_path / "base", tensors)
    longer = put(tmp_path / "longer", {f"module.{n}": t for n, t in tensors.items()})
    assert "begin with 'module.' before the base's" in refused("longer", TIES(), base, [longer], tmp_path / "out")
    assert "lack 'module.' before them" in refused("base", TIES(), longer, [base], tmp_path / "out")


def test_what_cannot_be_merged_as_it_is_is_refused_with_what_to_do(tmp_path):
    base = put(tmp_path / "base", llama())
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/net"}')
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    pickle = tmp_path / "pickle"
    pickle.mkdir()
    (pickle / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    few_bits = put(tmp_path / "few_bits", llama(), quantization_config={"bits": 4})
    ours = tmp_path / "ours"
    save(LoRA()(nn.Sequential(nn.Linear(3, 3))), ours)
    text = refused(
        "adapter", TIES(), base,
        {"a": adapter, "p": pickle, "q": few_bits, "l": ours, "h": "org/net", "n": tmp_path / "none"}, tmp_path / "out",
    )  # fmt: skip
    for part in (
        "is an adapter", "AutoModelForCausalLM.from_pretrained('org/net')", "merge_and_unload", "holds pickles",
        "homeostat convert", "is quantised", "hs.tune.fold", "hf download org/net", "none is not there", "(6)",
    ):  # fmt: skip
        assert part in text, (part, text)
    assert not (tmp_path / "out").exists()


def test_models_are_found_in_the_hubs_cache(tmp_path, monkeypatch):
    base, donors = family(tmp_path)
    cached = tmp_path / "hub" / "models--org--net"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    donors[0].rename(cached / "snapshots" / "abc")
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for path in ("org/net", cached):
        merge_checkpoints(Average(), base, [path], tmp_path / "out", overwrite=True)
        assert torch.equal(
            Mapped(tmp_path / "out")["model.norm.weight"], llama(seed=1, near=llama())["model.norm.weight"]
        )


def test_the_method_and_the_place_are_checked_at_the_door(tmp_path):
    base, donors = family(tmp_path)
    with pytest.raises(DtypeError, match="a merging method is wanted"):
        merge_checkpoints("ties", base, donors, tmp_path / "out")
    with pytest.raises(InputError, match="no donors"):
        merge_checkpoints(TIES(), base, [], tmp_path / "out")
    with pytest.raises(InputError, match="3 weights for 2 donors"):
        merge_checkpoints(TIES(weights=(1.0, 1.0, 1.0)), base, donors, tmp_path / "out")
    with pytest.raises(InputError, match="is the base, or within it"):
        merge_checkpoints(TIES(), base, donors, base, overwrite=True)
    with pytest.raises(InputError, match="is donor0, or within it"):
        merge_checkpoints(TIES(), base, donors, donors[0] / "m.safetensors")
    with pytest.raises(InputError, match="must be at least 1"):
        merge_checkpoints(TIES(), base, donors, tmp_path / "out", threads=0)
    with pytest.raises(InputError, match="there already"):
        merge_checkpoints(TIES(), base, donors[:1], tmp_path / "donor1")


# ------------------------------------------------------------------------------------------------------------- ties


def both(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


@pytest.mark.parametrize("said", [True, None])
@pytest.mark.parametrize("stored", ["once", "twice"])
def test_a_tied_head_is_written_once(tmp_path, said, stored):
    base = llama(tied=True)
    donors = [both(llama(seed=1, tied=True, near=base)), llama(seed=2, tied=True, near=base)]
    paths = [put(tmp_path / f"d{i}", t, tie_word_embeddings=True) for i, t in enumerate(donors)]
    there = put(tmp_path / "base", base if stored == "once" else both(base), tie_word_embeddings=said)
    report = merge_checkpoints(Average(), there, paths, tmp_path / "out")
    found = Mapped(tmp_path / "out")
    assert "lm_head.weight" not in found and set(found) == set(base)
    mean = (donors[0]["model.embed_tokens.weight"] + donors[1]["model.embed_tokens.weight"]) / 2
    assert torch.allclose(found["model.embed_tokens.weight"], mean)
    assert report.written == sum(t.numel() * 4 for t in base.values())


def test_a_head_that_only_looks_tied_is_written_where_the_configuration_unties_it(tmp_path):
    base = both(llama(tied=True))
    there = put(tmp_path / "base", base, tie_word_embeddings=False)
    donor = put(tmp_path / "donor", llama(seed=1), tie_word_embeddings=False)
    merge_checkpoints(Average(), there, [donor], tmp_path / "out")
    assert torch.equal(Mapped(tmp_path / "out")["lm_head.weight"], llama(seed=1)["lm_head.weight"])


def test_a_donor_that_ties_its_head_lends_its_embeddings_to_an_untied_base_and_the_reverse_is_refused(tmp_path):
    untied, tied = put(tmp_path / "untied", llama()), put(tmp_path / "tied", llama(seed=1, tied=True))
    report = merge_checkpoints(Average(), untied, [tied], tmp_path / "out")
    assert "tied ties its head to its embeddings, which stand for it: lm_head.weight" in report.notes
    assert torch.equal(
        Mapped(tmp_path / "out")["lm_head.weight"], llama(seed=1, tied=True)["model.embed_tokens.weight"]
    )
    text = refused("untied has a head of its own where the base ties it", Average(), tied, [untied], tmp_path / "out2")
    assert "untie the base" in text
    merge_checkpoints(Average(), tied, [untied], tmp_path / "out2", ignore=("lm_head.weight",))
    assert "lm_head.weight" not in Mapped(tmp_path / "out2")


# -------------------------------------------------------------------------------------------------- numbers and report


def test_numbers_that_are_not_finite_are_all_named_and_nothing_is_published(tmp_path):
    base = llama()
    spoilt = llama(seed=1)
    spoilt["model.norm.weight"][3] = float("nan")
    spoilt["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")
    there, donor = put(tmp_path / "base", base), put(tmp_path / "spoilt", spoilt)
    with pytest.raises(
        NonFiniteError, match=r"2 tensors .*1\.mlp\.up_proj\.weight \(spoilt\); model\.norm\.weight \(spoilt"
    ):
        merge_checkpoints(TIES(), there, [donor], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "spoilt"]
    large = {name: 1e30 * torch.ones_like(tensor) for name, tensor in base.items()}
    with pytest.raises(NonFiniteError, match=r"does not fit torch\.float16"):
        merge_checkpoints(Average(), there, [put(tmp_path / "large", large)], tmp_path / "out", dtype="float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "large", "spoilt"]


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path):
    base, donors = family(tmp_path, dtype=torch.bfloat16)
    size = sum(t.numel() for t in llama().values())
    plain = merge_checkpoints(TaskArithmetic(), base, donors, tmp_path / "out", dry_run=True)
    assert plain.dry and plain.read == 3 * 2 * size and plain.written == 2 * size and plain.numbers == size
    assert merge_checkpoints(Average(), base, donors, tmp_path / "out", dry_run=True).read == 2 * 2 * size
    twice = merge_checkpoints(TIES(), base, donors, tmp_path / "out", dry_run=True, dtype="float32")
    assert twice.read == 2 * 3 * 2 * size and twice.written == 4 * size and twice.memory > plain.memory
    assert plain.methods == {"TaskArithmetic": len(llama())}
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 3
    assert json.loads(json.dumps(plain.as_dict()))["merged"] == len(llama())


def test_ties_tells_what_it_kept_and_what_was_outvoted(tmp_path):
    base = {"w": torch.zeros(4)}
    donors = [{"w": torch.tensor([3.0, 1.0, 2.0, 0.0])}, {"w": torch.tensor([1.0, -2.0, 0.0, 0.0])}]
    for i, tensors in enumerate([base, *donors]):
        save_file(tensors, tmp_path / f"{i}.safetensors")
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    report = merge_checkpoints(TIES(density=1.0), paths[0], paths[1:], tmp_path / "out.safetensors")
    # Five of eight entries are not 0; of these the 1.0 beside -2.0 is outvoted.
    assert report.tensors["w"]["kept"] == pytest.approx(5 / 8) and report.mean("outvoted") == pytest.approx(1 / 5)
    assert report.seconds > 0 and (report.peak is None or report.peak >= 0)


def test_progress_is_told_in_bytes(tmp_path):
    base, donors = family(tmp_path)
    heard = list[Event]()
    merge_checkpoints(TIES(), base, donors, tmp_path / "out", run=Run(watch=heard.append))
    steps = [event for event in heard if event.name == "merge"]
    assert steps[-1].step == steps[-1].total == 4 * 4 * sum(t.numel() for t in llama().values())
    assert [event.step for event in steps] == sorted(event.step for event in steps)


def test_the_record_says_what_was_merged(tmp_path):
    base, donors = family(tmp_path)
    merge_checkpoints(TIES(density=0.3), base, donors, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["method"]["TIES"]["density"] == 0.3 and record["base"] == str(base)
    assert record["donors"] == {"donor0": str(donors[0]), "donor1": str(donors[1])}


# -------------------------------------------------------------------------------------------------------------- kills

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from homeostat.core.spectext import parse_spec
from homeostat.merge import Merge, merge_checkpoints
folder, method = Path(sys.argv[1]), parse_spec(sys.argv[2], Merge)
pwrite = os.pwrite
def until(left):
    def counted(handle, data, place):
        left[0] -= 1
        if left[0] < 0:
            pwrite(handle, data[: len(data) // 2], place)
            os.kill(os.getpid(), signal.SIGKILL)
        return pwrite(handle, data, place)
    return counted
for moment in map(int, sys.argv[3:]):
    # A process each, which is killed in the middle of a write.
    child = os.fork()
    if not child:
        os.pwrite = until([moment])
        donors = sorted(folder.glob("donor*"))
        report = merge_checkpoints(method, folder / "base", donors, folder / "out", shard=6000, sync=False)
        print("resumed", report.resumed, flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (folder / "out").exists(), flush=True)
"""


@pytest.mark.parametrize("method", ["TIES(density=1.0)", "TIES(density=1.0,scope=tensor)", "DARE"])
def test_a_merge_that_is_killed_at_random_moments_resumes_to_the_same_bits(tmp_path, method):
    """Many votes are even, and the majority is negative, so that what was merged before a kill has its say."""
    base = {n: torch.zeros_like(t) for n, t in llama(layers=4).items()}
    place = {n: torch.arange(t.numel()).view_as(t) % 3 for n, t in base.items()}
    # One place in three: an even vote; two negative ones; no change.
    changes = [{n: (p == 0).float() - (p == 1).float() for n, p in place.items()}]
    changes.append({n: -(p < 2).float() for n, p in place.items()})
    for i, change in enumerate(changes):
        put(tmp_path / f"donor{i}", {n: base[n] + 4 * d for n, d in change.items()}, dtype=torch.bfloat16)
    put(tmp_path / "base", {n: t.bfloat16() for n, t in base.items()}, dtype=torch.bfloat16)
    from homeostat.core.spectext import parse_spec

    merge_checkpoints(
        parse_spec(method, Merge), tmp_path / "base", sorted(tmp_path.glob("donor*")), tmp_path / "whole", shard=6000
    )
    wanted = digest(tmp_path / "whole")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    draws = random.Random(method)
    moments = [str(draws.randrange(most // 2, most)) for most in (12, 20, 20)]
    order = [sys.executable, "-c", KILLED, str(tmp_path), method, *moments, str(10**9)]
    told = subprocess.run(order, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert told[:3] == [f"{-signal.SIGKILL} False"] * 3 and told[4:] == ["0 True"]
    assert int(told[3].removeprefix("resumed ")) > 10 and digest(tmp_path / "out") == wanted
    assert not list(tmp_path.glob(".out*"))
