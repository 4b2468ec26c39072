"""A client of the server that needs numpy and safetensors, and comes again where it is told to.

>>> client = Client("http://localhost:8765", key="...")
>>> latents = client.encode("photo.jpg", tokens=32)      # float32 [32, C]
>>> client.decode(latents)                               # bytes of a PNG
"""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

SAFETENSORS = "application/vnd.safetensors"
AGAIN = (429, 502, 503, 504)


class Refusal(Exception):
    """What the server answered in place of a result: ``status`` and its reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(f"{status}: {reason}")
        self.status, self.reason = status, reason


@dataclass
class Client:
    """``url`` of the server, an API ``key`` if it asks for one; ``retries`` after a busy server or
    a broken connection, each after twice as long; ``timeout`` in seconds of one try."""

    url: str = "http://127.0.0.1:8765"
    key: str | None = None
    retries: int = 6
    timeout: float = 60.0

    def encode(
        self, photo: str | PathLike[str] | bytes, tokens: int | None = None, part: str | None = None
    ) -> np.ndarray:
        """Normalised latents of a photo's file, float32 [k, C]."""
        query = {"tokens": tokens, "part": part}
        data = self.ask("/v1/encode", _bytes(photo), query, accept=SAFETENSORS)
        return safetensors.numpy.load(data)["latents"][0]

    def decode(self, latents: np.ndarray) -> bytes:
        """The picture of latents [k, C], a PNG."""
        held = {"latents": np.ascontiguousarray(latents, np.float32)}
        return self.ask("/v1/decode", safetensors.numpy.save(held), {}, SAFETENSORS)

    def reconstruct(
        self, photo: str | PathLike[str] | bytes, tokens: int | None = None
    ) -> dict[str, Any]:
        """The rebuilt and the original picture as PNG in base64, and figures."""
        query = {"tokens": tokens}
        return json.loads(
            self.ask("/v1/reconstruct", _bytes(photo), query, accept="application/json")
        )

    def generate(self, label: str | int = 0, seed: int = 0) -> bytes:
        """A new picture, a PNG."""
        body = json.dumps({"label": label, "seed": seed}).encode()
        return self.ask("/v1/generate", body, {}, "application/json")

    def judge(self, photo: str | PathLike[str] | bytes, part: str | None = None) -> dict[str, Any]:
        """The verdict on a photo, by the path that the roll-out says."""
        return json.loads(self.ask("/v1/judge", _bytes(photo), {"part": part}))

    def explain(self, photo: str | PathLike[str] | bytes) -> list[dict[str, Any]]:
        """What the first k tokens keep of a photo, for many k: bytes, PSNR, distance to the eye."""
        return json.loads(self.ask("/v1/explain", _bytes(photo)))["kept"]

    def status(self) -> dict[str, Any]:
        """Model, roll-out and drift."""
        return json.loads(self.ask("/v1/status"))

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        query: dict[str, Any] | None = None,
        kind: str = "application/octet-stream",
        accept: str = "*/*",
    ) -> bytes:
        """One request. Raises Refusal for what the server refuses, OSError if it is not there."""
        asked = {k: v for k, v in (query or {}).items() if v is not None}
        url = self.url.rstrip("/") + path + ("?" + urllib.parse.urlencode(asked) if asked else "")
        headers = {"Accept": accept, "Content-Type": kind}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        for left in range(self.retries, -1, -1):
            wait = 0.25 * 2 ** (self.retries - left)
            request = urllib.request.Request(url, body, headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                if error.code not in AGAIN or not left:
                    raise Refusal(error.code, _reason(error)) from None
                wait = max(wait, float(error.headers.get("Retry-After") or 0))
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if not left:
                    raise
            time.sleep(wait)
        raise AssertionError


def _bytes(photo: str | PathLike[str] | bytes) -> bytes:
    return photo if isinstance(photo, bytes) else Path(photo).read_bytes()


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return error.reason
