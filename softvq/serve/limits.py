"""Who may ask, how much and how often."""

import hashlib
import hmac
import time
from dataclasses import dataclass
from pathlib import Path

from softvq.errors import UserError


@dataclass(frozen=True)
class Limits:
    """bytes: of a request.  pixels: of a photo.  rate: requests a second of one key, or of one
    address where there are no keys; 0 for any number.  queue: requests that may wait.
    seconds: that a client may take to send its request.
    """

    bytes: int = 20_000_000
    pixels: int = 50_000_000
    rate: float = 0.0
    queue: int = 256
    seconds: float = 30.0


class Keys:
    """API keys by name, of which only hashes are held; none: everybody may ask.

    A file has one key in a line, after a name and a space: ``line-3 8f2c..``.
    """

    def __init__(self, path: str | Path | None = None):
        self.known: dict[str, bytes] = {}
        if path is None:
            return
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: not a readable file of keys ({type(error).__name__})"
            ) from None
        for number, line in enumerate(lines, 1):
            name, _, key = line.strip().partition(" ")
            if not name or name.startswith("#"):
                continue
            if len(key.strip()) < 16:
                raise UserError(f"{path}: line {number}: a name, a space and a key of 16 or more")
            self.known[name] = hashlib.sha256(key.strip().encode()).digest()
        if not self.known:
            raise UserError(f"{path}: holds no key; write lines of a name, a space and a key")

    def name(self, given: str | None) -> str | None:
        """Whose key it is; None for nobody's. Takes as long for every key that is given."""
        digest, found = hashlib.sha256((given or "").encode()).digest(), None
        for name, known in self.known.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


class Rate:
    """A token bucket for each asker: ``rate`` a second, twice as many at once."""

    MOST = 10_000  # askers remembered

    def __init__(self, rate: float):
        self.rate, self.most = rate, max(1.0, 2 * rate)
        self.left: dict[str, tuple[float, float]] = {}

    def wait(self, asker: str) -> float:
        """0, and one request is counted; or the seconds until the next one may come."""
        if not self.rate:
            return 0.0
        now = time.monotonic()
        left, since = self.left.pop(asker, (self.most, now))
        left = min(self.most, left + (now - since) * self.rate)
        allowed = left >= 1
        self.left[asker] = (left - allowed, now)  # at the end: the first has been silent longest
        while len(self.left) > self.MOST:
            del self.left[next(iter(self.left))]
        return 0.0 if allowed else (1 - left) / self.rate
