"""What every refusal of the command line looks like."""

from softvq import cli


def refused(capsys, words: list[str], *texts: str) -> None:
    """The command ends with 2 and one line of ours, the error; what it found may stand before."""
    code = cli.main(words)
    out, err = capsys.readouterr()
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("softvq: ")]
    assert code == 2, f"{words!a} ended with {code}: {out}{err}"
    assert len(lines) == 1 and lines[0].startswith("softvq: error: "), err
    assert err.endswith(lines[0] + "\n") and "Traceback" not in err, err
    assert len(lines[0]) < 1200, err
    for text in texts:
        assert text in lines[0], f"{text!r} is not in {lines[0]!r}"
