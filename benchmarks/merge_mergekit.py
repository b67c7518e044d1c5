"""Merging checkpoints beside mergekit 0.1.5: seconds, memory, bytes, and how far the results are apart.

    python benchmarks/merge_mergekit.py                                     # ours alone, small, in a folder of its own
    python benchmarks/merge_mergekit.py --peer PYTHON                       # and mergekit
    python benchmarks/merge_mergekit.py --folder FOLDER --size 0.3 1 --donors 2 4 --dtype bfloat16 float32 --peer PYTHON

PYTHON is the interpreter of an environment of its own: `python -m venv peer && peer/bin/pip install mergekit==0.1.5`.
FOLDER takes the checkpoints (base and 4 donors of 1e9 parameters in float32 are 20 GB), which are kept for the next
run; `--clean` removes them.

Both sides read the same plan and the same Llama-shaped checkpoints, in files of half a gigabyte, each side in a process
of its own that has imported everything before the clock starts. Inputs are read once before each run, so that they come
from the page cache where they fit into it. Sides take turns, the order changing from round to round; the ratio is the
median over rounds of theirs / ours in seconds (above 1 we are faster). Both get the same number of threads. Neither
waits for the disk: mergekit does not, and ours is told not to.

Memory is the most anonymous memory (RssAnon) that the process held beyond what it held before the merge; pages of
mapped files are not in it, as they can be let go at any time. Bytes are those that went through read and write calls;
what is read by memory map is not counted by the system, so the inputs' size stands beside. The last column is the time
that input and output take at the bandwidth with which this machine copies a warm file, and ours as a multiple of it.
Where two sides differ in half precision, it is in changes of the very size of a threshold, of which each keeps others,
and in rounding, as mergekit computes in half precision, too (see docs/merging.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHAPES = {
    0.02: (256, 704, 4, 32_000), 0.1: (640, 1728, 12, 32_000), 0.3: (1024, 2816, 18, 32_000),
    1.0: (2048, 5632, 17, 32_000),
}  # fmt: skip
"""Width, width of the inner layer, layers and tokens, by parameters in 1e9."""

PLANS = {
    "linear": {"each": {"weight": 1.0}},
    "task_arithmetic": {"each": {"weight": 0.3}},
    "ties": {"each": {"weight": 1.0, "density": 0.2}},
    "breadcrumbs": {"each": {"weight": 0.3, "density": 0.85}, "all": {"gamma": 0.01}},
    "slerp": {"all": {"t": 0.4}},
    "model_stock": {},
    "dare_linear": {"each": {"weight": 0.3, "density": 0.5}},
    "della": {"each": {"weight": 0.3, "density": 0.5}, "all": {"epsilon": 0.1}},
}
DRAWN = ("dare_linear", "della")
PIECE = 1 << 22
FILE = 500_000_000


def plan(method: str, donors: int, dtype: str) -> dict[str, Any]:
    about = PLANS[method]
    names = [f"donor{i}" for i in range(1 if method == "slerp" else donors)]
    models = [{"model": name, "parameters": about.get("each", {})} for name in names]
    made = {"merge_method": method, "models": models, "parameters": about.get("all", {}), "dtype": dtype}
    return made if method == "linear" else {**made, "base_model": "base"}


# ------------------------------------------------------------------------------------------------------ checkpoints


def shapes(size: float) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, layers, tokens = SHAPES[size]
    yield "model.embed_tokens.weight", (tokens, width)
    for i in range(layers):
        front = f"model.layers.{i}"
        yield f"{front}.input_layernorm.weight", (width,)
        for name in "qkvo":
            yield f"{front}.self_attn.{name}_proj.weight", (width, width)
        yield f"{front}.post_attention_layernorm.weight", (width,)
        for name, shape in {"up": (inner, width), "gate": (inner, width), "down": (width, inner)}.items():
            yield f"{front}.mlp.{name}_proj.weight", shape
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (tokens, width)


def make(folder: Path, size: float, dtype: str, donors: int) -> int:
    """Write what is not there of the base and its donors; parameters of each."""
    for number in range(-1, donors):
        place = folder / ("base" if number < 0 else f"donor{number}")
        if not (place / "config.json").is_file():
            shutil.rmtree(place, ignore_errors=True)
            write(place, size, dtype, number)
    return sum(count(shape) for _, shape in shapes(size))


def count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if shape[1:] else 1)


def write(place: Path, size: float, dtype: str, number: int) -> None:
    """One checkpoint, a file at a time: weights like those of a trained network, and small changes of them."""
    import torch
    from safetensors.torch import save_file

    place.mkdir(parents=True)
    kind, held, files, where = getattr(torch, dtype), dict[str, torch.Tensor](), list[list[str]](), dict[str, int]()

    def flush() -> None:
        if held:
            save_file(held, place / f"part-{len(files):05d}.safetensors", metadata={"format": "pt"})
            where.update(dict.fromkeys(held, len(files)))
            files.append(list(held))
            held.clear()

    for seed, (name, shape) in enumerate(shapes(size)):
        made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(0.02)
        if number >= 0:
            draws = torch.Generator().manual_seed(1_000_003 * (number + 1) + seed)
            made += torch.randn(shape, generator=draws).mul_(0.001)
        held[name] = made.to(kind)
        if sum(t.numel() * t.element_size() for t in held.values()) >= FILE:
            flush()
    flush()
    called = {i: f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))}
    for i, name in called.items():
        (place / f"part-{i:05d}.safetensors").rename(place / name)
    index = {"metadata": {"total_size": 0}, "weight_map": {name: called[i] for name, i in where.items()}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    width, inner, layers, tokens = SHAPES[size]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": width // 64, "num_key_value_heads": width // 64,
        "vocab_size": tokens, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(config))


def inputs(folder: Path, wanted: dict[str, Any]) -> list[Path]:
    names = [model["model"] for model in wanted["models"]] + ([wanted["base_model"]] if "base_model" in wanted else [])
    return [file for name in names for file in sorted((folder / name).glob("*.safetensors"))]


def warm(files: list[Path]) -> None:
    buffer = bytearray(PIECE)
    for file in files:
        with open(file, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


# ------------------------------------------------------------------------------------------------------------ a side


def said(file: str, field: str) -> int:
    lines = Path("/proc/self", file).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


class Peak(threading.Thread):
    """The most anonymous memory, in bytes, that was held beyond what there was."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.most, self.over = said("status", "RssAnon"), 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, said("status", "RssAnon") - self.before)


def side(name: str, wanted: dict[str, Any], out: str, threads: int) -> None:
    """Merge once and print what it took; this runs in the side's own interpreter."""
    import torch

    torch.set_num_threads(threads)
    if name == "ours":
        sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
        from homeostat.merge.plans import merge_plan

        def call() -> None:
            merge_plan(wanted, out, threads=threads, sync=False)
    else:
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        config = MergeConfiguration.model_validate(wanted)
        options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False)

        def call() -> None:
            run_merge(config, out, options)

    peak, read, wrote = Peak(), said("io", "rchar"), said("io", "wchar")
    peak.start()
    began, used = time.perf_counter(), time.process_time()
    call()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    peak.over.set()
    peak.join()
    row = {"seconds": seconds, "cpu": used, "memory": 1024 * peak.most}
    print(json.dumps({**row, "read": said("io", "rchar") - read, "written": said("io", "wchar") - wrote}))


def ran(python: str, name: str, folder: Path, wanted: dict[str, Any], threads: int) -> dict[str, float]:
    out = folder / f"out-{name}"
    shutil.rmtree(out, ignore_errors=True)
    warm(inputs(folder, wanted))
    order = [python, str(Path(__file__).resolve()), "--side", name, json.dumps(wanted), str(out), str(threads)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(order, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------------------ tables


def apart(folder: Path) -> float:
    """The largest difference of the two results."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
    from homeostat.core.mapped import Mapped

    ours, theirs = Mapped(folder / "out-ours"), Mapped(folder / "out-theirs")
    if set(ours) != set(theirs):
        sys.exit(f"the results have other names: {sorted(set(ours) ^ set(theirs))[:5]}")
    most = 0.0
    for name, tensor in ours.items():
        pairs = zip(tensor.reshape(-1).split(PIECE), theirs[name].reshape(-1).split(PIECE), strict=True)
        most = max([most, *(float((a.float() - b.float()).abs().max()) for a, b in pairs)])
    return most


def copying(folder: Path) -> float:
    """Bytes read and written a second, while a warm file is copied; the best of three."""
    file, best = max((folder / "base").glob("*.safetensors"), key=lambda p: p.stat().st_size), 0.0
    buffer = bytearray(PIECE)
    for _ in range(3):
        warm([file])
        began = time.perf_counter()
        with open(file, "rb", buffering=0) as source, open(folder / "copy", "wb", buffering=0) as target:
            while length := source.readinto(buffer):
                target.write(memoryview(buffer)[:length])
        best = max(best, 2 * file.stat().st_size / (time.perf_counter() - began))
        (folder / "copy").unlink()
    return best


def table(folder: Path, options: argparse.Namespace, size: float, donors: int, dtype: str) -> None:
    numbers = make(folder, size, dtype, donors)
    bandwidth = copying(folder)
    print(
        f"\n{numbers / 1e9:.2f}e9 parameters, base and {donors} donors, {dtype}, {options.threads} threads; a warm "
        f"file is copied at {bandwidth / 1e9:.2f} GB/s read and written"
    )
    print(f"{'':16} {'ours, s':>8} {'CPU':>6} {'MB':>6}   {'theirs':>8} {'CPU':>6} {'MB':>6}   "
          f"{'ratio':>6} {'apart':>8}   {'inputs':>7} {'output':>7} {'at copy bandwidth':>18}")  # fmt: skip
    width = {"float32": 4}.get(dtype, 2)
    for method in options.methods:
        wanted = plan(method, donors, dtype)
        sides = {"ours": sys.executable, **({"theirs": options.peer} if options.peer else {})}
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for number in range(options.rounds):
            for name in list(sides) if number % 2 else list(sides)[::-1]:
                rows[name].append(ran(sides[name], name, folder, wanted, options.threads))
        middle = {
            name: {key: statistics.median(row[key] for row in held) for key in held[0]} for name, held in rows.items()
        }
        ours, theirs = middle["ours"], middle.get("theirs")
        said_of = f"{method:16} {ours['seconds']:8.2f} {ours['cpu']:6.1f} {ours['memory'] / 1e6:6.0f}   "
        if theirs:
            ratio = statistics.median(
                b["seconds"] / a["seconds"] for a, b in zip(rows["ours"], rows["theirs"], strict=True)
            )
            far = "drawn" if method in DRAWN else f"{apart(folder):.1e}"
            said_of += f"{theirs['seconds']:8.2f} {theirs['cpu']:6.1f} {theirs['memory'] / 1e6:6.0f}   "
            said_of += f"{ratio:6.2f} {far:>8}   "
        else:
            said_of += f"{'-':>8} {'-':>6} {'-':>6}   {'-':>6} {'-':>8}   "
        into, output = sum(file.stat().st_size for file in inputs(folder, wanted)), numbers * width
        least = (into + output) / bandwidth
        print(
            f"{said_of}{into / 1e9:5.2f}GB {output / 1e9:5.2f}GB {least:7.2f} s, {ours['seconds'] / least:4.1f}x",
            flush=True,
        )
        calls = ", ".join(f"{n} {m['read'] / 1e9:.2f} and {m['written'] / 1e9:.2f} GB" for n, m in middle.items())
        if options.calls:
            print(f"{'':16} through read and write calls: {calls}")
    for name in ("ours", "theirs"):
        shutil.rmtree(folder / f"out-{name}", ignore_errors=True)


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        name, wanted, out, threads = sys.argv[2:]
        side(name, json.loads(wanted), out, int(threads))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="of the checkpoints; one of its own, removed at the end, by default"
    )
    parser.add_argument("--size", type=float, nargs="+", default=[0.02], choices=list(SHAPES), help="parameters in 1e9")
    parser.add_argument("--donors", type=int, nargs="+", default=[2])
    parser.add_argument(
        "--dtype", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32", "float16"]
    )
    parser.add_argument("--methods", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", help="the Python of an environment with mergekit 0.1.5")
    parser.add_argument("--calls", action="store_true", help="also print bytes that went through read and write calls")
    parser.add_argument("--clean", action="store_true", help="remove the checkpoints of FOLDER at the end")
    options = parser.parse_args()
    if not Path("/proc/self/io").exists():
        sys.exit("this reads /proc, which only Linux has")
    folder = Path(tempfile.mkdtemp()) if options.folder is None else options.folder.absolute()
    try:
        for size in options.size:
            for dtype in options.dtype:
                for donors in options.donors:
                    table(folder / f"{size:g}-{dtype}", options, size, donors, dtype)
                if options.clean:
                    shutil.rmtree(folder / f"{size:g}-{dtype}")
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
