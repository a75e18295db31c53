"""CPU time and memory of processes and their children, sampled while they work. Linux only: it reads /proc."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_EVERY_S = 0.2


class Used(NamedTuple):
    """What a group of processes used: CPU in seconds, and the most memory that they held at one time, in bytes."""

    cpu_s: float
    peak_bytes: int


class _Seen(NamedTuple):
    parent: int
    cpu_s: float
    memory_bytes: int


class Meter:
    """Samples groups of processes, each given by the pids at its roots, until the block ends."""

    def __init__(self, roots: Mapping[str, Sequence[int]]) -> None:
        self._roots = roots
        self._samples: list[tuple[float, dict[str, Used]]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def used(self, group: str, from_s: float, to_s: float) -> Used:
        """Return what a group used between two moments of time.time(): CPU by interpolation, memory by the highest sample."""
        within = [seen[group].peak_bytes for moment, seen in self._samples if from_s - _EVERY_S <= moment <= to_s + _EVERY_S]
        return Used(self._cpu_at(group, to_s) - self._cpu_at(group, from_s), max(within))

    def _cpu_at(self, group: str, moment_s: float) -> float:
        after = next((index for index, (at, _) in enumerate(self._samples) if at >= moment_s), len(self._samples) - 1)
        (end, seen_end), (start, seen_start) = self._samples[after], self._samples[max(0, after - 1)]
        cpu_start, cpu_end = seen_start[group].cpu_s, seen_end[group].cpu_s
        share = 1.0 if end == start else min(1.0, (moment_s - start) / (end - start))
        return cpu_start + share * (cpu_end - cpu_start)

    def _run(self) -> None:
        while True:
            self._samples.append((time.time(), _used(self._roots)))
            if self._done.wait(_EVERY_S):
                self._samples.append((time.time(), _used(self._roots)))
                return


def _used(roots: Mapping[str, Sequence[int]]) -> dict[str, Used]:
    """Sum over each tree. Children that ended are in their parent's account of those it waited for."""
    processes = _processes()
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    sums = {}
    for group, pids in roots.items():
        tree, cpu_s, memory = [*pids], 0.0, 0
        for pid in tree:
            if pid in processes:
                cpu_s += processes[pid].cpu_s
                memory += processes[pid].memory_bytes
                tree += children.get(pid, ())
        sums[group] = Used(cpu_s, memory)
    return sums


def _processes() -> dict[int, _Seen]:
    """Source: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html (fields after the name: 4 is the parent, 14 to 17 CPU
    of the process and of children it waited for, 24 resident pages)."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        found[int(folder.name)] = _Seen(int(fields[1]), _TICK_S * sum(map(int, fields[11:15])), _PAGE_BYTES * int(fields[21]))
    return found
