"""Does labelling reach the rate that an API allows, and does its memory stay flat?

``label``: an API on this machine answers every call after 50 ms, so that c calls in flight allow 20 c answers a second;
ours is a whole `LedgerTeacher.rank` over HTTP, ledger on disk included. The row of the system ``allowed`` says how long
it would take at that rate; its ratio is the share of the rate that was reached. The row ``…/cpu`` has our
process's seconds on the processor, which other programs disturb less; its answers a second are what one core can do.

``record``: a million answers without HTTP, in blocks as probing asks them; the peak memory of the process is noted
after a tenth of them and at the end.

``python -m benchmarks.labelling_speed`` takes about five minutes; with ``--smoke`` some seconds, results thrown away.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.peers.machine import CpuTimes, Load, is_noisy, peak_mb
from benchmarks.results import FOLDER, SPEED, ResultTable

from recdistill import __version__
from recdistill.data.dataset import IdMap, Sequences
from recdistill.teachers.answers import Answer, Outcome, Take
from recdistill.teachers.base import OutsideTeacher
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

LATENCY = 0.05
"""Seconds after which the API answers."""
CONCURRENCIES = (8, 32, 64)
N_ITEMS, TOP_K = 10_000, 20
BLOCK = 4096
"""Histories in one ranking, as in probing."""
TRIES = 3
"""Attempts at a quiet measurement before a noisy one is written down as such."""
OURS, ALLOWED = "recdistill", "allowed"


class SlowApi(asyncio.Protocol):
    """Answers whatever it is asked after 50 ms."""

    body = json.dumps({"items": list(range(1, TOP_K + 1))}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with nothing received."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        """Answer once a whole request is here."""
        self.received += data
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if separator and len(rest) == length:
            self.received = b""
            asyncio.get_running_loop().call_later(LATENCY, self.transport.write, self.answer)


def serve(ready: Connection) -> None:
    """Answer for ever, and say on which port."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(SlowApi, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def slow_api() -> Iterator[str]:
    """Give the address of an API that runs in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/recommend"
    finally:
        process.kill()
        process.join()


class Simulated(OutsideTeacher):
    """Answers at once, and always the same."""

    ids = IdMap(list(range(N_ITEMS)), first=1)
    identity = "simulated"

    def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
        """Answer what is asked, as many at once as an API that is asked by 64 requests at once."""
        while requests := take(64):
            yield [(request, Answer(list(range(k)))) for request in requests]


def histories(start: int, n: int) -> Sequences:
    """Return different histories of two items."""
    row = np.arange(start, start + n)
    return Sequences.from_lists(zip((1 + row // N_ITEMS).tolist(), (1 + row % N_ITEMS).tolist(), strict=True))


def label(url: str, path: Path, concurrency: int, n: int) -> None:
    """Label n histories in this process; prints seconds, those of the processor too, and peak memory."""
    rows = histories(0, n)
    with Ledger(path) as ledger:
        teacher = HttpTeacher(IdMap(list(range(N_ITEMS)), first=1), url=url, concurrency=concurrency)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        LedgerTeacher(teacher, ledger, budget=n).rank(rows, TOP_K)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
        print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak_mb()}))


def record(path: Path, n: int) -> None:
    """Record n answers in this process; prints seconds and peak memory after a tenth of them and after all."""
    found = {}
    begin = time.perf_counter()
    with Ledger(path) as ledger:
        keeper = LedgerTeacher(Simulated(), ledger, budget=n)
        for part, stop in ((n // 10, n // 10), (n, n)):
            for start in range(0 if part < n else n // 10, stop, BLOCK):
                keeper.rank(histories(start, min(BLOCK, stop - start)), TOP_K)
            found[str(part)] = {"seconds": time.perf_counter() - begin, "peak_mb": peak_mb()}
    print(json.dumps(found))


def measure(*arguments: object) -> tuple[dict[str, Any], bool]:
    """Run one measurement in a process of its own until it is quiet; returns its figures and whether it was noisy."""
    for _ in range(TRIES):
        begin = CpuTimes.now()
        with tempfile.TemporaryDirectory() as folder, slow_api() as url:
            command = [sys.executable, "-m", "benchmarks.labelling_speed", "--measure", url, f"{folder}/ledger.sqlite"]
            child = subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True, text=True)
        load = Load.between(begin, CpuTimes.now())
        noisy = is_noisy(load.foreign, load.stolen)
        if not noisy:
            break
    found: dict[str, Any] = json.loads(child.stdout)
    return found, noisy


def run(table: ResultTable, *, seconds: float, n_recorded: int, repeats: int) -> None:
    """Measure what is not in the table yet; a row is on disk as soon as it is known."""
    for repeat in range(1, repeats + 1):
        for concurrency in CONCURRENCIES:
            n = round(seconds * concurrency / LATENCY)
            key = {"dataset": f"{n} queries", "repeat": repeat}
            if _done(table, key, f"label/concurrency-{concurrency}"):
                continue
            found, noisy = measure("label", concurrency, n)
            setting = f"label/concurrency-{concurrency}{'/noisy' * noisy}"
            cpu = found.pop("cpu")
            ours = {**key, "system": OURS, "version": __version__, "setting": setting}
            allowed = {**key, "system": ALLOWED, "setting": setting, "seconds": seconds}
            table.append(
                {**ours, **found},
                {**ours, "setting": f"{setting}/cpu", "seconds": cpu},
                {**allowed, "ratio": seconds / found["seconds"]},
            )
            share = f"{seconds / found['seconds']:.1%} of {n / seconds:,.0f} answers a second"
            print(f"{setting}: {share}, {1000 * cpu / n:.2f} ms of the processor for each", flush=True)
    key = {"system": OURS, "version": __version__, "repeat": 1}
    if not _done(table, {**key, "dataset": f"{n_recorded} answers"}, "record"):
        parts, noisy = measure("record", n_recorded)
        setting = f"record{'/noisy' * noisy}"
        table.append(*({**key, "dataset": f"{n} answers", "setting": setting, **parts[n]} for n in parts))
        print(json.dumps(parts), flush=True)


def _done(table: ResultTable, key: dict[str, Any], setting: str) -> bool:
    return any(table.already_done(**key, setting=setting + noise) for noise in ("", "/noisy"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a second each, results thrown away")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        url, path, what, *numbers = options.measure
        if what == "label":
            label(url, Path(path), *map(int, numbers))
        else:
            record(Path(path), *map(int, numbers))
        return
    with tempfile.TemporaryDirectory() as folder:
        table = ResultTable((Path(folder) if options.smoke else FOLDER) / "labelling_speed.csv", SPEED)
        if options.smoke:
            run(table, seconds=1.0, n_recorded=20_000, repeats=1)
        else:
            run(table, seconds=10.0, n_recorded=1_000_000, repeats=options.repeats)


if __name__ == "__main__":
    main()
