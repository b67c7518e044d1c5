"""Measures the promise to do no harm: every stream of `streams.yaml`, every network, several seeds.

    python harm/run.py                                  # everything, then docs/harm.md (make harm)
    python harm/run.py --networks fashion-bn --seeds 1  # a part, printed; with fewer seeds or networks there is no page

It is a grid (`homeostat.bench`): cells that are done are kept in runs/harm and computed again only where what they
depend on changed, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]


def main() -> None:
    from harm.cells import as_cells
    from harm.page import page, summary
    from harm.suites import NETWORKS, suites
    from homeostat.bench import Result, bench
    from homeostat.cli.printing import Progress
    from homeostat.data import below

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    folder, found = ROOT / "runs" / "harm", list[Result]()
    for network in chosen.networks:
        for suite in suites(network, folder / "networks", chosen.seeds):
            with Progress(f"reading {network}") as progress:
                done = bench(below(suite, ROOT), folder, on="processes", count=chosen.workers, watch=progress)
            found += done.results
            print(f"{network}: {done.computed} cells computed, {done.kept} kept, {done.failed} failed", flush=True)
    cells = as_cells(found)
    print(summary(cells))
    if chosen.networks == list(NETWORKS) and chosen.seeds >= 5:
        (ROOT / "docs" / "harm.md").write_text(page(cells))
        print("docs/harm.md written")


if __name__ == "__main__":
    main()
