"""Fashion-MNIST is found in the stated order, fetched whole or not at all, and missed with advice."""

from __future__ import annotations

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from homeostat.core.errors import InputError, MissingPart
from homeostat.data import fashion
from homeostat.data.download import download


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine that has no Fashion-MNIST anywhere, and no network."""
    monkeypatch.delenv("HOMEOSTAT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion, "ADDRESS", "http://127.0.0.1:9")
    return tmp_path


@pytest.fixture
def address(bare, write_split, monkeypatch):
    """An address on this machine that serves 4 training images under the published names."""
    folder = write_split(bare / "served", 4)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(fashion, "ADDRESS", f"http://127.0.0.1:{server.server_port}")
    sums = {p.stem: (p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in folder.glob("*.gz")}
    monkeypatch.setattr(fashion, "CHECKSUMS", sums)
    yield fashion.ADDRESS
    server.shutdown()
    thread.join()
    server.server_close()


def test_places_are_tried_in_order(bare, write_split, monkeypatch):
    write_split(bare / "cache" / "homeostat" / "fashion-mnist", 1)
    assert len(fashion.fashion_mnist()) == 1
    write_split(bare / "debian", 2)
    assert len(fashion.fashion_mnist()) == 2
    monkeypatch.setenv("HOMEOSTAT_DATA", str(bare / "data"))
    assert len(fashion.fashion_mnist()) == 2
    write_split(bare / "data" / "fashion-mnist", 3, suffix="")
    assert len(fashion.fashion_mnist()) == 3


def test_a_folder_that_lacks_the_split_is_passed_over(bare, write_split, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(bare / "data"))
    write_split(bare / "data" / "fashion-mnist", 3)
    write_split(bare / "debian", 2, split="test")
    assert len(fashion.fashion_mnist("test")) == 2


def test_a_download_is_kept_and_used_again(bare, address, monkeypatch):
    assert len(fashion.fashion_mnist()) == 4
    monkeypatch.setattr(fashion, "ADDRESS", "http://127.0.0.1:9")
    assert fashion.fashion_mnist().load().y.tolist() == [0, 1, 2, 3]
    kept = sorted(p.name for p in (bare / "cache" / "homeostat" / "fashion-mnist").iterdir())
    assert kept == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("fault", ["content", "longer", "shorter"])
def test_a_download_that_is_not_what_was_asked_for_leaves_nothing(bare, address, monkeypatch, fault):
    sums = dict(fashion.CHECKSUMS)
    size, sha256 = sums["train-labels-idx1-ubyte"]
    wrong = {"content": (size, "0" * 64), "longer": (size - 1, sha256), "shorter": (size + 1, sha256)}
    sums["train-labels-idx1-ubyte"] = wrong[fault]
    monkeypatch.setattr(fashion, "CHECKSUMS", sums)
    with pytest.raises(MissingPart, match="SHA-256"):
        fashion.fashion_mnist()
    folder = bare / "cache" / "homeostat" / "fashion-mnist"
    assert [p.name for p in folder.iterdir()] == ["train-images-idx3-ubyte.gz"]  # the one that was right


def test_an_absent_address_is_an_error_of_the_operating_system(bare, address):
    with pytest.raises(OSError, match="404"):
        download(f"{address}/none.gz", bare / "none.gz", "0" * 64, 1)
    assert not list(bare.glob("*none*"))


def test_when_nothing_works_the_error_names_every_way(bare):
    with pytest.raises(MissingPart) as caught:
        fashion.fashion_mnist("test")
    for part in ("HOMEOSTAT_DATA", "fashion-mnist", "dataset-fashion-mnist", "t10k-images-idx3-ubyte", "127.0.0.1"):
        assert part in str(caught.value)


def test_a_damaged_file_is_an_error_and_not_a_reason_to_look_elsewhere(bare, write_split, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(bare / "data"))
    folder = write_split(bare / "data" / "fashion-mnist", 30)
    write_split(bare / "debian", 2)
    images = folder / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-9])
    with pytest.raises(InputError, match=images.name):
        fashion.fashion_mnist()


def test_an_unknown_split_is_refused_before_anything_is_looked_for(bare):
    with pytest.raises(InputError, match="'train' or 'test'"):
        fashion.fashion_mnist("valid")


@pytest.mark.skipif(not Path(fashion.DEBIAN).is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debians_package_holds_the_published_data(monkeypatch):
    monkeypatch.delenv("HOMEOSTAT_DATA", raising=False)
    train, test = fashion.fashion_mnist("train"), fashion.fashion_mnist("test")
    assert (len(train), len(test)) == (60000, 10000)
    assert train.labels.bincount().tolist() == [6000] * 10 and test.labels.bincount().tolist() == [1000] * 10
    values = train.pixels.float() / 255
    assert float(values.mean()) == pytest.approx(0.2860, abs=1e-4)  # the statistics that everybody normalises with
    assert float(values.std()) == pytest.approx(0.3530, abs=1e-4)
