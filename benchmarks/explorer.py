"""The explorer on a store of an ImageNet's size: its start, its answers as a browser gets them, and its memory.

A latent's page is what a browser asks for: the latent, and the pictures of its top images, six at a time. Its maps
are asked for meanwhile; the first ones load torch and the SAE.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks import explorer_store
from benchmarks.explorer_store import Size
from benchmarks.report import Measurement, parser, report

_CONNECTIONS = 6
_WHERE = "frequency>0.0001;label_entropy<2.5;dead=false"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--latents", type=int, default=Size.n_latents)
    options.add_argument("--images", type=int, default=Size.n_images)
    options.add_argument("--classes", type=int, default=Size.n_classes)
    options.add_argument("--repeats", type=int, default=7)
    arguments = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="patchsae-explorer-"))
    try:
        store, view = explorer_store.write(
            folder, Size(n_latents=arguments.latents, n_images=arguments.images, n_classes=arguments.classes)
        )
        title = f"explorer, {arguments.latents:,} latents, {arguments.images:,} images"
        report(title, measure(store.root, view, arguments), arguments.json)
    finally:
        shutil.rmtree(folder)


def measure(root: Path, view: str, arguments: argparse.Namespace) -> dict[str, Measurement]:
    """A server is started anew for what is measured cold."""
    n = arguments.repeats
    starts = []
    for _ in range(max(1, n // 2)):
        with _server(root) as server:
            starts.append((server.first_page, server.first_data, server.first_page_work))
    with _server(root) as server:
        before = server.work()
        cold = _seconds(lambda: server.latent(view, 0))
        cold_work = server.work() - before
        warm = [_seconds(lambda latent=latent: server.latent(view, latent)) for latent in range(1, 1 + n)]
        first_maps = _seconds(lambda: server.get(f"/api/maps/{view}/0"))
        maps = [
            _seconds(lambda latent=latent: server.get(f"/api/maps/{view}/{latent}"))
            for latent in range(1, 1 + n)
        ]
        again = [_seconds(lambda: server.latent(view, 1)) for _ in range(n)]
        server.get(f"/api/latents/{view}/rows")
        columns = ("frequency", "-mean_activation", "label_entropy", "-n_images")
        sorts = [
            _seconds(
                lambda i=i: server.get(
                    f"/api/latents/{view}/rows", {"where": _WHERE, "sort": columns[i % 4], "offset": i}
                )
            )
            for i in range(n)
        ]
        of_class = [
            _seconds(lambda i=i: server.get(f"/api/latents/{view}/rows", {"class": i, "where": _WHERE}))
            for i in range(n)
        ]
        class_page = [_seconds(lambda i=i: server.get(f"/api/class/{view}/{i}")) for i in range(n)]
        scatter = [_seconds(lambda: server.get(f"/api/latents/{view}/column/frequency")) for _ in range(n)]
        server.get("/api/tables")
        memory = server.memory()
    middle = statistics.median
    return {
        "start to first page": Measurement(value=middle(one for one, _, _ in starts), target=1.0, unit="s"),
        "... processor time": Measurement(value=middle(one for _, _, one in starts), target=None, unit="s"),
        "start to first data": Measurement(value=middle(one for _, one, _ in starts), target=None, unit="s"),
        "filter and sort": Measurement(value=middle(sorts), target=0.15, unit="s"),
        "filter and sort by class": Measurement(value=middle(of_class), target=0.15, unit="s"),
        "column of the scatter": Measurement(value=middle(scatter), target=None, unit="s"),
        "page of a latent, cold": Measurement(value=cold, target=1.0, unit="s"),
        "... cold, processor time": Measurement(value=cold_work, target=None, unit="s"),
        "page of a latent, new pictures": Measurement(value=middle(warm), target=None, unit="s"),
        "page of a latent, cached pictures": Measurement(value=middle(again), target=0.3, unit="s"),
        "maps of a latent, first": Measurement(value=first_maps, target=None, unit="s"),
        "maps of a latent": Measurement(value=middle(maps), target=None, unit="s"),
        "class": Measurement(value=middle(class_page), target=None, unit="s"),
        "memory of the server": Measurement(value=memory / 1e9, target=1.5, unit="GB"),
    }


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@dataclass
class _Server:
    """A running server, and when it had its first answers, in seconds from its start.

    `first_page_work` is the processor time that the first page took, which other work on the machine changes less.
    """

    pid: int
    port: int
    first_page: float = 0.0
    first_data: float = 0.0
    first_page_work: float = 0.0

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(
            "GET", path + (f"?{urlencode(query)}" if query else ""), headers={"accept-encoding": "gzip"}
        )
        answered = connection.getresponse()
        found = answered.read()
        connection.close()
        assert answered.status == 200, found[:500]
        if answered.headers.get("content-encoding") == "gzip":
            import gzip

            return gzip.decompress(found)
        return found

    def latent(self, view: str, latent: int) -> None:
        found = json.loads(self.get(f"/api/latent/{view}/{latent}"))
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(lambda one: self.get(f"/picture/{view}/{one['image']}?size=96"), found["top"]))

    def work(self) -> float:
        """Seconds of processor time that the server has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes that the server and its processes hold."""
        total = 0
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (self.pid, *map(int, children)):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return total


@contextmanager
def _server(root: Path) -> Iterator[_Server]:
    command = [
        sys.executable,
        "-m",
        "patchsae.flows.cli.app",
        "explore",
        "--store",
        str(root),
        "--no-browser",
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
        server = _Server(process.pid, port)
        server.get("/")
        server.first_page = time.perf_counter() - started
        server.first_page_work = server.work()
        server.get("/api/home")
        server.first_data = time.perf_counter() - started
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


if __name__ == "__main__":
    main()
