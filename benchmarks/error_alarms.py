r"""Alarms on a rise of the error where labels come: the loop's monitor, and MAPIE's risk monitoring.

    python benchmarks/error_alarms.py                                # ours alone
    python benchmarks/error_alarms.py --peer-python PEER/bin/python  # and the peer, from an environment of its own

The peer is never imported here. Make an environment for it with

    python3 -m venv PEER && PEER/bin/pip install "mapie>=1.6"

Both are calibrated on the same 1,000 labelled samples, 12 % of them wrong, and tolerate a rise of 5 points. Then ten
labels come with each window. The two promise different things: ours that false alarms are at least `run_length` = 500
windows apart on average, and it starts anew after each; MAPIE's that one is ever raised with probability at most 5 %.
MAPIE bounds the mean error since the beginning, so what went well long ago counts against an alarm now.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from homeostat.core.online import Bag
from homeostat.core.probe import Outputs
from homeostat.loop.monitor import Monitor

LABELS, QUIET, AFTER = 10, 1000, 200
CASES = ((0.12, QUIET), (0.17, QUIET), (0.22, 10), (0.22, 200), (0.32, 10), (0.32, 200), (0.52, 10), (0.52, 200))
PEER = """
import json, sys
import numpy as np
from mapie.exchangeability_testing import RiskMonitoring
reference, streams = np.load(sys.argv[1]), np.load(sys.argv[2])
found = []
for stream in streams:
    peer = RiskMonitoring(risk="accuracy", test_level=0.05, tolerance=0.05, warn=False)
    peer.compute_threshold(np.ones_like(reference), 1 - reference)
    wrong = stream.reshape(-1)
    peer.update(np.ones_like(wrong), 1 - wrong)
    # The bounds after every label come at once; those at the end of windows are looked at, as ours are.
    bounds = peer.online_risk_lower_bound_sequence_history[stream.shape[1] - 1 :: stream.shape[1]]
    hits = np.flatnonzero(bounds > peer.threshold)
    found.append(int(hits[0]) if len(hits) else -1)
print(json.dumps(found))
"""


def ours(reference: np.ndarray, streams: np.ndarray) -> np.ndarray:
    """First window with an alarm in each stream; -1 where there is none."""
    return np.array([_first(reference, stream) for stream in streams])


def _first(reference: np.ndarray, stream: np.ndarray) -> int:
    monitor, state = Monitor(signals=("error",), block=1), Bag()
    right = torch.eye(2)[torch.zeros(len(reference), dtype=torch.long)]
    monitor.begin(Outputs(right, torch.from_numpy(reference), torch.arange(len(reference))), state)
    window = Outputs(torch.zeros(LABELS, 2), None, torch.arange(LABELS))
    for t, wrong in enumerate(stream):
        if monitor.look(window, torch.from_numpy(wrong), state) is not None:
            return t
    return -1


def theirs(peer: str, reference: np.ndarray, streams: np.ndarray) -> np.ndarray:
    """The same of the peer."""
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / name) for name in ("reference.npy", "streams.npy")]
        np.save(names[0], reference)
        np.save(names[1], streams)
        told = subprocess.run([peer, "-c", PEER, *names], capture_output=True, text=True, check=True).stdout
    return np.array(json.loads(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--peer-python", help="Python of an environment with MAPIE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws, reference = np.random.default_rng(0), (np.arange(1000) < 120).astype(np.int64)
    print(f"{options.streams} streams of {LABELS} labels a window; delays in windows, cut at {AFTER}\n")
    print("| detector | error | after | streams with a false alarm | mean delay | unseen |\n|---|---|---|---|---|---|")
    for error, at in CASES:
        # An error below the tolerance is none to alarm on, at any time.
        share = np.full(at, error) if at == QUIET else np.where(np.arange(at + AFTER) < at, 0.12, error)
        streams = (draws.random((options.streams, len(share), LABELS)) < share[:, None]).astype(np.int64)
        rows = {"Monitor": ours(reference, streams)}
        if options.peer_python is not None:
            rows["MAPIE"] = theirs(options.peer_python, reference, streams)
        for name, first in rows.items():
            late, false = first[first >= at] - at + 1, int(((first >= 0) & (first < at)).sum())
            when = "always" if at == QUIET else f"{at} windows"
            delay, unseen = (f"{late.mean():.1f}" if len(late) else "-"), int((first < 0).sum())
            told = "- | -" if at == QUIET else f"{delay} | {unseen}"
            print(f"| {name} | {error:.0%} | {when} | {false} | {told} |")


if __name__ == "__main__":
    main()
