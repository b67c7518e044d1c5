"""Memory of an adapting network over a long stream: EATA on the small ResNet must stay flat.

    python benchmarks/memory_flat.py                      # 200,000 samples
    python benchmarks/memory_flat.py --samples 20000

The resident memory of the process is read after every batch. It goes up and down by some 20 MB as PyTorch takes and
gives back memory, so peaks are compared: of the first fifth of the stream and of the rest. If it grew by more than
20 MB the script fails. Images are drawn anew for each batch, like a stream's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))


from homeostat.adapt import EATA
from homeostat.core.memory import resident
from homeostat.core.world import World
from homeostat.nn import ResNet

LIMIT = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draws = torch.Generator().manual_seed(0)

    def images(count: int) -> torch.Tensor:
        return torch.rand(count, 1, 28, 28, generator=draws) * torch.rand(count, 1, 1, 1, generator=draws)

    net = ResNet(depth=8, in_channels=1, width=8).eval()
    # Every sample is used, so that every step is a whole one.
    eata = EATA(margin=1.0, div_margin=1.0, optimizer=EATA().optimizer.replace(lr=1e-5))(net, World(source=images(500)))
    steps = max(10, options.samples // options.batch)
    if resident() is None:
        sys.exit("this reads /proc/self/status, which only Linux has")

    def held() -> float:
        return (resident() or 0) / 1e6

    warm, highest, began = 0.0, 0.0, time.perf_counter()
    for step in range(steps):
        eata.observe(images(options.batch))
        if step < steps // 5:
            warm = max(warm, held())
        else:
            highest = max(highest, held())
    seen, used = int(eata.carry["seen"]), int(eata.carry["used"])
    rate = seen / (time.perf_counter() - began)
    print(f"{seen} samples, {used} of them learnt from, {rate:.0f} a second")
    print(f"peak of the first fifth {warm:.1f} MB, growth since {highest - warm:.2f} MB (limit {LIMIT:.0f})")
    if highest - warm > LIMIT:
        sys.exit("memory grows")


if __name__ == "__main__":
    main()
