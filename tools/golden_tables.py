"""Every tensor beside the reference implementation's: the worst error over what is allowed.

    python tools/golden_tables.py --golden DIRECTORY

DIRECTORY holds golden vectors (.safetensors files and INDEX.json with a tolerance per tensor). The
comparisons are those of the tests, run on that directory; temperatures, numbers of steps, spacings
and guidance are read from each file. A ratio of 1 or less passes. Ends with another code than 0 if
any comparison fails, or if there was none.
"""

import argparse
import math
import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "tests"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", required=True, type=Path, help="folder of golden vectors")
    golden = parser.parse_args().golden.resolve()
    if not (golden / "INDEX.json").is_file():
        parser.error(f"{golden}: no INDEX.json there")
    os.environ["SOFTVQ_GOLDEN"] = str(golden)  # before the tests' module is imported
    sys.path.insert(0, str(TESTS))
    import vectors

    tests = [path for path in TESTS.glob("test_*.py") if "from vectors import" in path.read_text()]
    code = pytest.main(
        ["-q", "-k", "golden", "--tb=short", f"--rootdir={TESTS.parent}", *map(str, tests)]
    )
    rows = [row for row in vectors.COMPARISONS if row.file.startswith(f"{golden.name}/")]
    print("| golden file | tensor | error / allowed |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {row.file} | {row.tensor} | {row.ratio:.4f} |")
    worst = max((row.ratio for row in rows), default=math.nan)
    files = len({row.file for row in rows})
    print(f"\n{len(rows)} tensors of {files} files; worst ratio {worst:.4f}")
    return int(code) if rows else 1


if __name__ == "__main__":
    sys.exit(main())
