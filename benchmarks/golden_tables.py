"""Every tensor beside the reference implementation's: the worst error over what is allowed.

    python benchmarks/golden_tables.py --golden DIRECTORY

DIRECTORY holds golden vectors (.safetensors files and INDEX.json with a tolerance per tensor). The
comparisons are those of the tests, run on that directory; a ratio of 1 or
less passes. Ends with another code than 0 if any comparison fails.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
LINE = re.compile(r"^(\S+/\S+) +(\S+) +(\d+\.\d+|nan|inf)$", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", required=True, type=Path, help="folder of golden vectors")
    golden = parser.parse_args().golden.resolve()
    if not (golden / "INDEX.json").is_file():
        parser.error(f"{golden}: no INDEX.json there")
    tests = [path for path in TESTS.glob("test_*.py") if "from vectors import" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "golden", "-rP", "--tb=short", *tests]
    environment = os.environ | {"SOFTVQ_GOLDEN": str(golden)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    rows = [row for row in LINE.findall(run.stdout) if row[0].startswith(f"{golden.name}/")]
    print("| golden file | tensor | error / allowed |\n| --- | --- | --- |")
    for name, tensor, ratio in rows:
        print(f"| {name} | {tensor} | {ratio} |")
    worst = max((float(ratio) for *_, ratio in rows), default=float("nan"))
    files = len({name for name, *_ in rows})
    print(f"\n{len(rows)} tensors of {files} files; worst ratio {worst:.4f}")
    print(run.stdout.strip().splitlines()[-1])
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
