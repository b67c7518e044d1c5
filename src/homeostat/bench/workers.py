"""Where cells are computed: in this process, in processes of a pool, on Ray.

Each kind takes a job (`computing.packed`), and says which jobs are done. Cells are computed on one thread wherever they
are, so that results do not depend on it.
"""

from __future__ import annotations

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from homeostat.bench.computing import compute, failed
from homeostat.bench.results import Result
from homeostat.core.errors import InputError, MissingExtra

Job = Mapping[str, Any]

DIED = "the process that computed it ended without a word; most often the system took it down for want of memory"


class Workers(ABC):
    """Computes jobs, so many at a time.

    Attributes:
        count: jobs at a time.
    """

    count: int = 1

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Begin a job."""

    @abstractmethod
    def next(self) -> tuple[Job, Result]:
        """Wait for a job that is done."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; what was begun is dropped."""


class Here(Workers):
    """In this process, one after another."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def next(self) -> tuple[Job, Result]:
        job = self._jobs.popleft()
        return job, compute(job)

    def close(self) -> None:
        self._jobs.clear()


class Pool(Workers):
    """In processes of their own. A process that dies fails its cell and no other.

    Args:
        count: processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._running: dict[Future[Result], Job] = {}
        self._suspects: deque[Job] = deque()
        self._pool = self._open(count)

    def _open(self, count: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, get_context("spawn"), initializer=_quiet)

    def submit(self, job: Job) -> None:
        with _few_threads():  # a process starts when a job finds none that is idle
            self._running[self._pool.submit(compute, job)] = job

    def next(self) -> tuple[Job, Result]:
        if self._suspects:
            return self._alone(self._suspects.popleft())
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        future = next(iter(done))
        job = self._running.pop(future)
        try:
            return job, future.result()
        except BrokenProcessPool:
            # Which of the jobs took its process down is not known, so each is run again by itself.
            self._suspects.extend([job, *self._running.values()])
            self._running.clear()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._open(self.count)
            return self.next()

    def _alone(self, job: Job) -> tuple[Job, Result]:
        with self._open(1) as pool, _few_threads():
            try:
                return job, pool.submit(compute, job).result()
            except BrokenProcessPool:
                return job, failed(job, DIED)

    def close(self) -> None:
        for process in list((self._pool._processes or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


class Cluster(Workers):
    """On Ray: workers of this machine, or of a cluster that is there.

    Args:
        count: jobs at a time.
        address: of the cluster, such as `ray://head:10001` or `auto`; empty starts one on this machine.

    Raises:
        MissingExtra: Ray is not installed. InputError: the cluster cannot be reached.
    """

    def __init__(self, count: int, address: str = "") -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtra("--on ray needs Ray: pip install 'homeostat[ray]'") from None
        self.count, self._ray, self._running = count, ray, dict[Any, Job]()
        self._started = not ray.is_initialized()
        if self._started:
            own: dict[str, Any] = {"num_cpus": count, "include_dashboard": False} if not address else {}
            environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            try:
                ray.init(
                    address=address or "local", logging_level=logging.ERROR, log_to_driver=False,
                    runtime_env={"env_vars": environment if not address else {"OMP_NUM_THREADS": "1"}}, **own,
                )  # fmt: skip
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from None
        # Not tried again by Ray: a cell that takes its process down would do so each time.
        self._compute: Any = ray.remote(num_cpus=1, max_retries=0)(compute)

    def submit(self, job: Job) -> None:
        self._running[self._compute.remote(dict(job))] = job

    def next(self) -> tuple[Job, Result]:
        (done, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        job = self._running.pop(done)
        try:
            return job, self._ray.get(done)
        except self._ray.exceptions.RayError as error:
            return job, failed(job, f"{DIED}\n\n{error}")

    def close(self) -> None:
        for running in self._running:
            self._ray.cancel(running, force=True)
        if self._started:
            self._ray.shutdown()


def workers(on: str | Any, count: int | Any, address: str = "") -> Workers:
    """Workers by name; see `check_workers`.

    Raises:
        InputError: there is no such kind, or no worker. MissingExtra: Ray is not installed.
    """
    check_workers(on, count, address)
    if on == "here":
        return Here()
    return Pool(count) if on == "processes" else Cluster(count, address)


def check_workers(on: str | Any, count: int | Any, address: str = "") -> None:
    """Refuse what are no workers.

    Args:
        on: `"here"`, `"processes"` or `"ray"`.
        count: cells at a time; here it is one.
        address: of a Ray cluster.

    Raises:
        InputError: there is no such kind, or no worker.
    """
    if not isinstance(count, int) or count < 1:
        raise InputError(f"at least one worker is needed; got {count}")
    if address and on != "ray":
        raise InputError(f"an address is that of a Ray cluster; with on={on!r} there is none")
    if on not in ("here", "processes", "ray"):
        raise InputError(f"cells are computed on 'here', 'processes' or 'ray'; got {on!r}")


def _quiet() -> None:
    """An interrupt is for the process that waits; it ends the others."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _few_threads() -> Iterator[None]:
    """A process that starts now takes one thread in libraries that read this once."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
