"""The user's own metric: functions and tiny programs that compute what is known."""

import shlex
import sys

import numpy as np
import pytest

from softvq.errors import UserError
from softvq.evaluate.custom import open_metric

NAMES = ["val/crack/a.jpg", "val/crack/a.png", "val/ok/b.jpg"]
ORIGINALS = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
REBUILT = (ORIGINALS // 2).astype(np.uint8)
DIFFERENCES = np.abs(ORIGINALS.astype(float) - REBUILT).mean((1, 2, 3))

FUNCTIONS = """
import numpy as np
LIMIT = 3

def each(originals, rebuilt, names):
    assert names[2] == "val/ok/b.jpg"
    return np.abs(originals.astype(float) - rebuilt).mean((1, 2, 3))

def whole(originals, rebuilt, names):
    return float(each(originals, rebuilt, names).mean())

def listed(originals, rebuilt, names):
    return [1, float("nan"), 3]

def wrong(originals, rebuilt, names):
    return np.zeros(2)

def word(originals, rebuilt, names):
    return "good"

def broken(originals, rebuilt, names):
    raise RuntimeError("no light\\nat all")

def leaves(originals, rebuilt, names):
    raise SystemExit(0)
"""

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
originals, rebuilt = (Path(word.split("=")[-1]) for word in sys.argv[1:3])
files = sorted(path.relative_to(originals) for path in originals.rglob("*.png"))
assert [str(file) for file in files] == ["val/crack/a.png", "val/crack/a.png.png", "val/ok/b.png"]
read = lambda path: np.asarray(Image.open(path)).astype(float)
print("looking at", len(files), "pairs")
print(np.mean([np.abs(read(originals / f) - read(rebuilt / f)).mean() for f in files]))
print()
"""


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "my metrics.py"
    path.write_text(FUNCTIONS)
    return path


def program(tmp_path, text: str, places: str = "{originals} --with={rebuilt}") -> str:
    path = tmp_path / "program.py"
    path.write_text(text)
    return f"command: {shlex.quote(sys.executable)} {shlex.quote(str(path))} {places}"


def one_line(error) -> bool:
    return "\n" not in str(error.value)


def test_functions_of_a_file(functions):
    each = open_metric(f"{functions}:each")(ORIGINALS, REBUILT, NAMES)
    np.testing.assert_allclose(each, DIFFERENCES)
    whole = open_metric(f"{functions}:whole")(ORIGINALS, REBUILT, NAMES)
    assert isinstance(whole, float) and whole == pytest.approx(DIFFERENCES.mean())
    listed = open_metric(f"{functions}:listed")(ORIGINALS, REBUILT, NAMES)
    np.testing.assert_array_equal(listed, [1, np.nan, 3])


def test_a_function_of_a_package(functions, monkeypatch):
    folder = functions.parent / "inspection_rules"
    folder.mkdir()
    functions.rename(folder / "edges.py")
    monkeypatch.syspath_prepend(str(folder.parent))
    metric = open_metric("inspection_rules.edges:whole")
    assert metric(ORIGINALS, REBUILT, NAMES) == pytest.approx(DIFFERENCES.mean())


def test_a_command(tmp_path):
    metric = open_metric(program(tmp_path, PROGRAM))
    assert metric(ORIGINALS, REBUILT, NAMES) == pytest.approx(DIFFERENCES.mean())
    assert np.isnan(open_metric(program(tmp_path, "print('nan')"))(ORIGINALS, REBUILT, NAMES))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("wrong", r"shape \[2\]; return one number or 3"),
        ("word", "ValueError"),
        ("broken", r"RuntimeError: no light at all \(line 22\)"),
        ("leaves", r"ended the program with exit\(0\) \(line 25\); return a number"),
    ],
)
def test_functions_that_fail(functions, name, reason):
    metric = open_metric(f"{functions}:{name}")
    with pytest.raises(UserError, match=reason) as error:
        metric(ORIGINALS, REBUILT, NAMES)
    assert one_line(error) and name in str(error.value)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("FILE:eech", "no function 'eech' there; there are: each, whole"),
        ("FILE:LIMIT", "no function 'LIMIT' there"),
        ("nowhere.py:each", "nowhere.py:each: no such file; give file.py:function"),
        ("no_such_package.rules:each", "No module named 'no_such_package'"),
        ("just_words", "'just_words' is not understood; give file.py:function"),
        ("command: prog {originals}", "lacks {rebuilt}; give .*{originals} {rebuilt}"),
        ("command: prog 'x {originals} {rebuilt}", "No closing quotation; mend the quotes"),
        ("command: no-such-prog {originals} {rebuilt}", "no-such-prog is not a program"),
    ],
)
def test_metrics_that_cannot_be_opened(functions, text, reason):
    with pytest.raises(UserError, match=reason) as error:
        open_metric(text.replace("FILE", str(functions)))
    assert one_line(error)


def test_a_file_that_is_not_python(tmp_path):
    path = tmp_path / "faulty.py"
    path.write_text("x = 1\ny = unknown\n")
    with pytest.raises(UserError, match=r"NameError: .*'unknown'.* \(line 2\)$") as error:
        open_metric(f"{path}:f")
    path.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match=r"ended the program with exit\(3\) \(line 2\)") as error:
        open_metric(f"{path}:f")
    path.write_text("def f(:\n")
    with pytest.raises(UserError, match="SyntaxError") as error:
        open_metric(f"{path}:f")
    assert one_line(error)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("import sys; print(1); print('bad\\nvery bad', file=sys.stderr); sys.exit(3)",
         "exit status 3; its last words: very bad"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL; its last words: none"),
        ("print('PSNR 3 dB')", "the last line it printed is no number: 'PSNR 3 dB'"),
        ("pass", "no number: ''"),
    ],
)  # fmt: skip
def test_commands_that_fail(tmp_path, text, reason):
    metric = open_metric(program(tmp_path, text))
    with pytest.raises(UserError, match=reason) as error:
        metric(ORIGINALS, REBUILT, NAMES)
    assert one_line(error)


def test_no_shell(tmp_path):
    metric = open_metric(program(tmp_path, "print(4)") + f" ; touch {tmp_path / 'touched'}")
    assert metric(ORIGINALS, REBUILT, NAMES) == 4 and not (tmp_path / "touched").exists()
