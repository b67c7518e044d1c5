"""Fashion-MNIST, from wherever it can be had.

Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
arXiv 1708.07747.
"""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path

from homeostat.core.errors import InputError, MissingPart
from homeostat.data.download import download
from homeostat.data.idx import FILES, check_split, find_idx, read_images
from homeostat.data.pixels import Pixels
from homeostat.nn.places import VARIABLE, cache_folder, data_folder

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
NAME = "fashion-mnist"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
"""The address that the data set's authors give; it answers to http only, so the checksums matter."""
CHECKSUMS = {
    "train-images-idx3-ubyte": (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    "train-labels-idx1-ubyte": (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    "t10k-images-idx3-ubyte": (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    "t10k-labels-idx1-ubyte": (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
}


def fashion_mnist(split: str = "train") -> Pixels:
    """Fashion-MNIST: grey 28x28 images of 10 kinds of clothing, 60,000 to train and 10,000 to test.

    Looked for in `HOMEOSTAT_DATA/fashion-mnist`, then where Debian's package dataset-fashion-mnist puts it, then in the
    user's cache folder (`nn.cache_folder`); at last it is downloaded there from its authors' address, with a
    progress bar, and checked by its SHA-256.

    Args:
        split: `"train"` or `"test"`.

    Returns:
        Images float32 `[samples, 1, 28, 28]` in 0..1, labels int64; a sample's id is its position in the file.

    Raises:
        MissingPart: there is no way to it; the text names all ways and why each failed.
        InputError: a file is truncated or damaged.
    """
    check_split(split)
    root, cache = data_folder(), cache_folder() / NAME
    for folder in ([root / NAME] if root else []) + [DEBIAN, cache]:
        if find_idx(folder, split):
            return read_images(folder, split, CLASSES)
    try:
        for name in FILES[split]:
            size, sha256 = CHECKSUMS[name]
            download(f"{ADDRESS}/{name}.gz", cache / f"{name}.gz", sha256, size)
    except (OSError, HTTPException, InputError) as error:
        held = f"{VARIABLE} is {root}, which does not hold it" if root else f"{VARIABLE} is not set"
        raise MissingPart(
            f"there is no Fashion-MNIST ({split}): {held}; {DEBIAN} is absent; {ADDRESS} failed ({error}). "
            f"Set {VARIABLE} to a folder that holds {NAME}/{FILES[split][0]}.gz and {FILES[split][1]}.gz, or on "
            "Debian: apt install dataset-fashion-mnist, or call again with a network. digits() needs no file"
        ) from error
    return read_images(cache, split, CLASSES)
