"""Load on the server, on loopback: right answers, none lost, memory, times; batches; kill -9.

    python benchmarks/serving.py [--requests 10000] [--clients 50] [--model shipped]
        [--precision fp32] [--kill] [--batching]

Starts ``softvq serve`` in a process of its own, and again whenever it dies, as systemd would. The
clients send photos of odd sizes to encode, decode and reconstruct, in turn; 1% are malformed, 1%
too large, 1% are cut off by the client. Every answer is compared with what the library
computes. ``--kill`` sends SIGKILL half way; ``--batching`` compares batches of 16 with one by one
at 16 clients. Prints a table.
"""

import argparse
import http.client
import io
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import safetensors.numpy
from PIL import Image

from softvq import coding, models

SAFETENSORS = "application/vnd.safetensors"
KINDS = 24  # different photos
RETRIES = 400


class Supervised:
    """``softvq serve``, started again when it dies."""

    def __init__(self, model: str, precision: str, batch: int, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [
            sys.executable, "-m", "softvq", "serve", "--model", model, "--precision", precision,
            "--batch", str(batch), "--port", str(self.port), "--queue", "512",
            "--store", f"sqlite:///{folder / 'softvq.db'}", "--most-bytes", "400000",
        ]  # fmt: skip
        self.log = (folder / "server.log").open("ab")
        self.wanted, self.starts = True, 0
        self.process = self._start()
        self.thread = threading.Thread(target=self._keep, daemon=True)
        self.thread.start()

    def _start(self) -> subprocess.Popen:
        self.starts += 1
        return subprocess.Popen(self.command, stdout=self.log, stderr=self.log)

    def _keep(self) -> None:
        while self.wanted:
            if self.process.poll() is not None and self.wanted:
                self.process = self._start()
            time.sleep(0.2)

    def ready(self) -> None:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                time.sleep(0.2)

    def memory(self) -> float:
        """Resident, in MB."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def processor(self) -> float:
        """Seconds of processor time that the present process took."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def stop(self) -> int:
        self.wanted = False
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Load:
    """Photos, the library's answers to them, and clients that compare."""

    def __init__(self, model: str):
        self.tokenizer = models.open_tokenizer(model)
        draw = np.random.default_rng(0)
        self.files, pictures = [], []
        for _ in range(KINDS):
            height, width = draw.integers(40, 200, 2)
            coarse = draw.integers(0, 256, (7, 7, 3)).astype(np.uint8)
            picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            out = io.BytesIO()
            picture.save(out, "PNG", compress_level=1)
            self.files.append(out.getvalue())
            pictures.append(picture)
        self.latents = coding.encode_all(self.tokenizer, pictures).numpy()
        self.rebuilt = coding.decode_all(self.tokenizer, coding.torch.from_numpy(self.latents))
        self.bodies = [safetensors.numpy.save({"latents": latents}) for latents in self.latents]
        self.counts: Counter[str] = Counter()
        self.times: list[float] = []
        self.worst = 0.0
        self.lock = threading.Lock()

    def client(self, port: int, numbers: list[int], tolerance: float, levels: int) -> None:
        """One client: a connection that is opened again where it breaks."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for number in numbers:
            kind = random.Random(number).random()
            if kind < 0.03:
                self._odd(port, number, kind)
                continue
            i, route = number % KINDS, ("encode", "decode", "reconstruct", "encode")[number % 4]
            body = self.bodies[i] if route == "decode" else self.files[i]
            for _ in range(RETRIES):
                started = time.perf_counter()
                try:
                    connection.request(
                        "POST",
                        f"/v1/{route}",
                        body,
                        {"Accept": SAFETENSORS, "Connection": "keep-alive"},
                    )
                    answer = connection.getresponse()
                    data = answer.read()
                except (OSError, http.client.HTTPException):
                    connection.close()
                    self._count("tried again")
                    time.sleep(0.5)
                    continue
                if answer.status == 429:
                    self._count("429")
                    time.sleep(0.2)
                    continue
                self._check(
                    route, i, answer.status, data, time.perf_counter() - started, tolerance, levels
                )
                break
            else:
                self._count("LOST")

    def _check(
        self,
        route: str,
        i: int,
        status: int,
        data: bytes,
        took: float,
        tolerance: float,
        levels: int,
    ) -> None:
        right = status == 200
        if right and route == "encode":
            found = safetensors.numpy.load(data)["latents"][0]
            error = float(np.abs(found - self.latents[i]).max() / np.abs(self.latents[i]).max())
            right = error < tolerance
            self.worst = max(self.worst, error)
        elif right:
            found = np.asarray(Image.open(io.BytesIO(data))).astype(int)
            right = bool((np.abs(found - self.rebuilt[i]) <= levels).mean() > 0.999)
        with self.lock:
            self.counts["right" if right else f"WRONG {status}"] += 1
            self.times.append(took)

    def _odd(self, port: int, number: int, kind: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            if kind < 0.01:
                connection.request("POST", "/v1/encode", b"no photo %d" % number)
                self._count(f"malformed {connection.getresponse().status}")
            elif kind < 0.02:
                connection.request("POST", "/v1/encode", bytes(400_001))
                self._count(f"oversized {connection.getresponse().status}")
            else:
                connection.connect()
                connection.sock.sendall(
                    b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nabc"
                )
                self._count("aborted")
        except (OSError, http.client.HTTPException) as error:
            self._count(f"odd, {type(error).__name__}")
        connection.close()

    def _count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1


def _fifths(memory: list[tuple[float, float]]) -> str:
    """Median of each fifth of a run, in MB, from (share of the requests, MB)."""
    held = [[rss for share, rss in memory if i <= 5 * share < i + 1] for i in range(5)]
    return ", ".join(f"{np.median(some):.0f}" if some else "-" for some in held)


def measure(
    load: Load, asked: argparse.Namespace, batch: int, clients: int, count: int, kill: bool
) -> None:
    """One run against one server; prints what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        server = Supervised(asked.model, asked.precision, batch, Path(folder))
        server.ready()
        load.counts, load.times, load.worst = Counter(), [], 0.0
        exact = asked.precision == "fp32"
        tolerance, levels = (1e-4, 1) if exact else (0.1, 24)
        shares = [list(range(first, count, clients)) for first in range(clients)]
        memory, started, before = [], time.perf_counter(), server.processor()
        with ThreadPoolExecutor(clients) as pool:
            futures = [
                pool.submit(load.client, server.port, share, tolerance, levels) for share in shares
            ]
            killed = not kill
            while not all(future.done() for future in futures):
                time.sleep(1)
                done = sum(load.counts.values())
                if not killed and done > count / 2:
                    server.process.kill()
                    killed = True
                try:
                    memory.append((done / count, server.memory()))
                except psutil.Error:
                    continue
            for future in futures:
                future.result()
        took = time.perf_counter() - started
        busy = server.processor() - before if server.starts == 1 else float("nan")
        code = server.stop()
        times = np.sort(load.times) * 1000
        warm = [rss for share, rss in memory if share > 0.2]
        rows = {
            "model, precision": f"{asked.model}, {asked.precision}",
            "clients, batch": f"{clients}, {batch}",
            "requests": f"{count:,} in {took:.1f} s: {count / took:.1f} a second",
            "requests per processor second of the server": f"{count / busy:.1f}",
            "answers": ", ".join(f"{n:,} {what}" for what, n in sorted(load.counts.items())),
            "largest error of tokens": f"{load.worst:.1e}",
            "ms: median, p95, p99, longest": ", ".join(
                f"{times[min(len(times) - 1, int(q * len(times)))]:.0f}"
                for q in (0.5, 0.95, 0.99, 1)
            ),
            "memory after warm-up": f"{min(warm):.0f} to {max(warm):.0f} MB" if warm else "-",
            "memory by fifths of the requests": _fifths(memory),
            "starts, exit code": f"{server.starts}, {code}",
        }
        print("\n".join(f"| {name} | {value} |" for name, value in rows.items()), flush=True)
        log = (Path(folder) / "server.log").read_text()
        if "Traceback" in log:
            print(log[-2000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--model", default="shipped")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--batching", action="store_true")
    asked = parser.parse_args()
    load = Load(asked.model)
    print("| | |\n|---|---|")
    if asked.batching:
        for batch in (16, 1):
            measure(load, asked, batch, 16, asked.requests, False)
    else:
        measure(load, asked, 16, asked.clients, asked.requests, asked.kill)


if __name__ == "__main__":
    main()
