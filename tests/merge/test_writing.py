"""Checkpoints written in pieces: what other readers see, what a kill leaves, what a full disk says."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from homeostat.core.errors import InputError, StoreError
from homeostat.core.mapped import DTYPES, INDEX, Mapped
from homeostat.merge import publishing, writing
from homeostat.merge.writing import CheckpointSink, Slot


def made(dtypes: list[torch.dtype] | None = None) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(0)
    dtypes = dtypes or [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
    shapes = [(3, 5), (7,), (), (2, 0, 4), (4, 4)]
    found = {}
    for i, dtype in enumerate(dtypes):
        tensor = torch.randn(shapes[i % 5], generator=draws)
        found[f"t{i}"] = (10 * tensor).to(torch.int32).to(dtype) if not dtype.is_floating_point else tensor.to(dtype)
    return found


def slots(tensors: dict[str, Tensor]) -> list[Slot]:
    return [Slot(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]


def fill(sink: CheckpointSink, tensors: dict[str, Tensor], names: list[str] | None = None, step: int = 3) -> None:
    """In pieces, the last ones first."""
    for name in reversed(list(tensors) if names is None else names):
        flat = tensors[name].reshape(-1)
        for start in reversed(range(0, len(flat), step)):
            sink.write(name, start, flat[start : start + step])
        sink.finish(name)


def test_the_reference_reader_gives_back_every_dtype(tmp_path):
    tensors = made(list(DTYPES.values()))
    sink = CheckpointSink(tmp_path / "out", slots(tensors))
    fill(sink, tensors)
    assert not (tmp_path / "out").exists()
    sink.publish({"config.json": b"{}"})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)) if tensor.ndim else True
    assert int(found["t6"]) == int(tensors["t6"]) if not tensors["t6"].ndim else True
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_files_are_cut_at_the_size_asked_for_and_the_index_says_where_all_lies(tmp_path):
    tensors = {f"layer.{i}": torch.full((25,), float(i)) for i in range(5)} | {"large": torch.ones(100)}
    sink = CheckpointSink(tmp_path / "out", slots(tensors), shard=250)
    fill(sink, tensors)
    sink.publish()
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * (5 * 25 + 100)
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert {n for n, f in index["weight_map"].items() if f == files[0]} == {"layer.0", "layer.1"}
    assert index["weight_map"]["large"] == files[3], "what is larger than a file has one of its own"
    opened = Mapped(tmp_path / "out")
    assert all(torch.equal(opened[name], tensor) for name, tensor in tensors.items())
    for file in files:
        assert load_file(tmp_path / "out" / file).keys() == {n for n, f in index["weight_map"].items() if f == file}


def test_a_path_that_ends_in_safetensors_is_one_file(tmp_path):
    tensors = made()
    sink = CheckpointSink(tmp_path / "new" / "w.safetensors", slots(tensors), shard=1)
    fill(sink, tensors)
    sink.publish({"config.json": b"{}"})
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["w.safetensors"]
    assert torch.equal(load_file(tmp_path / "new" / "w.safetensors")["t0"], tensors["t0"])


def test_what_is_there_is_kept_unless_it_may_be_replaced_and_is_a_checkpoint(tmp_path):
    tensors = made()
    out = tmp_path / "out"
    out.mkdir()
    save_file({"old": torch.ones(2)}, out / "model.safetensors")
    (out / "old.txt").write_text("old")
    with pytest.raises(InputError, match="there already"):
        CheckpointSink(out, slots(tensors))
    sink = CheckpointSink(out, slots(tensors), overwrite=True)
    fill(sink, tensors)
    assert (out / "old.txt").exists()
    sink.publish()
    assert [p.name for p in out.iterdir()] == ["model.safetensors"] and "old" not in Mapped(out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="never replaced"):
        CheckpointSink(tmp_path / "mine", slots(tensors), overwrite=True)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(InputError, match="is a link"):
        CheckpointSink(tmp_path / "link", slots(tensors), overwrite=True)
    with pytest.raises(InputError, match="another kind"):
        CheckpointSink(tmp_path / "mine" / "thesis.txt", slots(tensors), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "mine", "out"]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("where", ["out", "out.safetensors"])
def test_at_no_moment_of_a_replacement_is_nothing_there_to_be_read(tmp_path, monkeypatch, at_once, where):
    """Killed at each call that changes names: the old one or the new one is found, after at most one look."""
    if not at_once:
        monkeypatch.setattr(publishing, "_exchanged", lambda a, b: False)

    class Kill(BaseException):
        pass

    seen = set()
    for step in range(8):
        out = tmp_path / str(step) / where
        for value in (1.0, 2.0):
            sink = CheckpointSink(out, [Slot("w", torch.float32, (2,))], overwrite=True)
            sink.write("w", 0, torch.full((2,), value))
            sink.finish("w")
            if value == 1.0:
                sink.publish()
        left = [step]

        def count(call, left=left):
            def counted(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise Kill
                return call(*args, **kwargs)

            return counted

        with monkeypatch.context() as patched:
            for name in ("rename", "replace", "unlink"):
                patched.setattr(Path, name, count(getattr(Path, name)))
            patched.setattr(publishing.shutil, "rmtree", count(publishing.shutil.rmtree))
            if at_once:
                patched.setattr(publishing, "_exchanged", count(publishing._exchanged))
            try:
                sink.publish()
            except Kill:
                sink.close()
        publishing._put_back(out)
        found = float(Mapped(out)["w"][0])
        assert found in (1.0, 2.0)
        seen.add(found)
        again = CheckpointSink(out, [Slot("w", torch.float32, (2,))], overwrite=True)
        again.write("w", 0, torch.zeros(2))
        again.publish()
        assert Mapped(out)["w"].tolist() == [0.0, 0.0]
    assert seen == {1.0, 2.0}


def test_an_unfinished_one_of_the_same_key_is_gone_on_with(tmp_path):
    tensors = made([torch.float32] * 5)
    names = list(tensors)
    first = CheckpointSink(tmp_path / "out", slots(tensors), key="a", shard=60)
    fill(first, tensors, names[:3])
    first.write(names[3], 0, tensors[names[3]].reshape(-1)[:0])
    log = first.staging / writing.PROGRESS
    first.close()
    log.write_bytes(log.read_bytes() + b'["t4", nu')  # killed in the middle of a line
    again = CheckpointSink(tmp_path / "out", slots(tensors), key="a", shard=60)
    assert again.begun and set(again.done) == set(names[:3])
    fill(again, tensors, names[3:])
    again.publish()
    assert all(torch.equal(Mapped(tmp_path / "out")[name], tensors[name]) for name in names)


@pytest.mark.parametrize("change", ["key", "resume", "restart", "size", "noise"])
def test_an_unfinished_one_that_may_not_fit_is_begun_anew(tmp_path, monkeypatch, change):
    tensors = made([torch.float32] * 5)
    first = CheckpointSink(tmp_path / "out", slots(tensors), key="a")
    fill(first, tensors)
    first.close()
    if change == "restart":
        (tmp_path / "boot").write_text("another")
        monkeypatch.setattr(writing, "BOOT", tmp_path / "boot")
    if change == "size":
        os.truncate(first.staging / "model.safetensors", 100)
    if change == "noise":
        (first.staging / writing.PROGRESS).write_bytes(b"\n")
        (first.staging / "folder").mkdir()
    key = "b" if change == "key" else "a"
    again = CheckpointSink(tmp_path / "out", slots(tensors), key=key, resume=change != "resume")
    assert not again.begun and not again.done
    fill(again, tensors)
    again.publish()
    assert torch.equal(Mapped(tmp_path / "out")["t0"], tensors["t0"])


def test_two_processes_do_not_write_into_one_place(tmp_path):
    tensors = made()
    first = CheckpointSink(tmp_path / "out", slots(tensors))
    with pytest.raises(InputError, match="another process is merging"):
        CheckpointSink(tmp_path / "out", slots(tensors))
    fill(first, tensors)
    first.publish()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_full_disk_is_found_before_anything_is_merged(tmp_path, monkeypatch):
    def full(handle, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match=r"needs 4\.00 GB and its disk has .* GB left; make room"):
        CheckpointSink(tmp_path / "out", [Slot("w", torch.float32, (1000, 1000, 1000))])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "no")))
    sink = CheckpointSink(tmp_path / "out", [Slot("w", torch.float32, (2,))])
    sink.write("w", 0, torch.ones(2))
    sink.publish()
    assert Mapped(tmp_path / "out")["w"].tolist() == [1, 1]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        CheckpointSink(tmp_path / "file" / "out", made() and [Slot("w", torch.float32, (2,))])


def test_pieces_from_several_threads_land_where_they_belong(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    whole = torch.arange(100_000)
    sink = CheckpointSink(tmp_path / "out", [Slot("w", torch.int64, (100_000,))], sync=False)
    starts = list(range(0, 100_000, 777))
    random.Random(0).shuffle(starts)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda start: sink.write("w", start, whole[start : start + 777]), starts))
    sink.publish()
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], whole)
