"""A seeded part of ``make fuzz``: damaged files are read, or refused in one line."""

import pytest
from helpers.fuzz import TARGETS, Target, fuzz, targets

from softvq.errors import UserError


@pytest.mark.parametrize(
    ("kind", "count"),
    [("images", 640), ("config", 80), ("recipes", 60), ("tokens", 120), ("npz", 120)],
)
def test_damaged_files_are_read_or_refused(kind, count):
    found = fuzz(count, seed=0, only=kind)
    assert not found.findings
    opened, refused = found.counts[f"{kind} opened"], found.counts[f"{kind} refused"]
    assert opened + refused == count and opened and refused > count / 4


@pytest.mark.parametrize("kind", TARGETS)
def test_what_is_damaged_was_whole(kind, tmp_path):
    for i, target in enumerate(targets(kind)):
        folder = tmp_path / str(i)
        for name, content in target.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        target.use(folder)


def test_findings_are_told(monkeypatch):
    """A bug, and an error that says nothing."""
    for error in (KeyError("a bug"), UserError("")):

        def fail(folder, error=error):
            raise error

        monkeypatch.setitem(
            TARGETS, "broken", (1.0, lambda scratch, f=fail: [Target({"a": b"x"}, f)])
        )
        targets.cache_clear()
        assert len(fuzz(3, only="broken").findings) == 3
