"""`softvq import` and `softvq export`, and the one road by which anything is downloaded."""

import json

import huggingface_hub
import pytest
import torch
from contract import photos, small
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from softvq import cli
from softvq.errors import UserError
from softvq.interop.reference import export_reference
from softvq.io import load_tensors
from softvq.models import open_tokenizer
from softvq.tokenizer import Tokenizer


@pytest.fixture
def net() -> Tokenizer:
    """A tokenizer that the reference could have, with no two weights alike."""
    torch.manual_seed(0)
    net = Tokenizer(small(layer_scale=1e-5, entropy_pooled=True, codebooks=4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    net.latent_mean.fill_(0.25)
    net.latent_std.fill_(0.07)
    return net.eval()


@pytest.fixture
def folders(net, tmp_path):
    """One tokenizer in our layout and in the reference's."""
    net.save_pretrained(tmp_path / "ours")
    export_reference(net, tmp_path / "theirs")
    return tmp_path


def softvq(capsys, *arguments) -> tuple[int, str]:
    """Exit code of a command, and what it said."""
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


def same_files(one, other) -> bool:
    names = ("config.json", "model.safetensors")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_round_trips_are_exact_to_the_bit(folders, net, capsys):
    ours, theirs = folders / "ours", folders / "theirs"
    assert softvq(capsys, "import", theirs, folders / "a", "--num-heads", 2) == (
        0,
        f"Tokenizer in {folders / 'a'}\n",
    )
    assert same_files(folders / "a", ours)
    assert softvq(capsys, "export", ours, folders / "b")[0] == 0
    assert same_files(folders / "b", theirs)
    again = open_tokenizer(folders / "a")
    assert torch.equal(again.reconstruct(photos()), net.reconstruct(photos()))


def test_errors_are_one_line(folders, capsys):
    ours, theirs, new = folders / "ours", folders / "theirs", folders / "new"
    foreign = folders / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for arguments, message in (
        (("import", ours, new), "is in the layout of softvq already"),
        (("import", foreign, new), "is of no model that can be imported"),
        (("import", theirs, new), "width 64 is not divisible by 6 heads; give num_heads"),
        (("import", theirs, ours, "--num-heads", 2), "holds a model already; give another folder"),
        (("import", folders / "none", new), "no such directory"),
        (("export", theirs, new), "holds a model of another layout; the reference format is"),
        (("export", ours, theirs), "holds a model already"),
    ):
        code, said = softvq(capsys, *arguments)
        assert code == 2 and message in said and said.count("\n") == 1
        assert not new.exists()


# ---- the hub ----


def hub(monkeypatch, answer) -> list:
    """Stand in for the hub; returns the list of what is asked of it."""
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_nothing_is_fetched_unless_asked(folders, monkeypatch, capsys):
    asked = hub(monkeypatch, folders / "theirs")
    with pytest.raises(UserError, match="`softvq import org/name DIRECTORY --download`, or in Pyt"):
        open_tokenizer("org/name")
    code, said = softvq(capsys, "import", "org/name", folders / "new")
    assert code == 2 and "--download" in said
    with pytest.raises(UserError, match="no such directory$"):
        open_tokenizer(folders / "none", download=True)
    open_tokenizer(folders / "ours", download=True)
    assert not asked


def test_a_repository_opens_like_a_directory(folders, net, monkeypatch, capsys):
    asked = hub(monkeypatch, folders / "theirs")
    opened = open_tokenizer("org/name", num_heads=2, download=True)
    assert torch.equal(opened.reconstruct(photos()), net.reconstruct(photos()))
    arguments = ("import", "org/name", folders / "new", "--num-heads", 2, "--download")
    assert softvq(capsys, *arguments)[0] == 0
    assert same_files(folders / "new", folders / "ours")
    # Nothing that would have to be unpickled.
    assert asked == 2 * [("org/name", {"allow_patterns": ["config.json", "*.safetensors"]})]


def answer_of_status(status: int):
    """The hub's answer to a request, of the HTTP library that its client is built on."""
    try:
        from httpx2 import Request, Response
    except ImportError:
        from httpx import Request, Response
    return Response(status, request=Request("GET", "https://huggingface.co/org/name"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("Got: ConnectError: no route\nlong story"), "ConnectError: no ro"),
        (OSError("disk"), r"fetched from the Hugging Face hub \(disk\); mend the connection, or"),
        (RuntimeError(), r"\(RuntimeError\)"),
    ],
)
def test_a_hub_out_of_reach_is_one_line(error, message, monkeypatch, folders, capsys):
    hub(monkeypatch, error)
    with pytest.raises(UserError, match=message) as caught:
        open_tokenizer("org/name", download=True)
    assert "\n" not in str(caught.value)
    code, said = softvq(capsys, "import", "org/name", folders / "new", "--download")
    assert code == 2 and said.count("\n") == 1


def test_a_repository_that_is_not_there(monkeypatch):
    hub(monkeypatch, RepositoryNotFoundError("404", response=answer_of_status(404)))
    with pytest.raises(UserError, match="no such repository on the Hugging Face hub"):
        open_tokenizer("org/name", download=True)


def test_an_imported_model_keeps_the_scalars_of_its_latents(folders, capsys):
    softvq(capsys, "import", folders / "theirs", folders / "new", "--num-heads", 2)
    state = load_tensors(folders / "new" / "model.safetensors")
    assert torch.equal(state["latent_mean"], torch.full((16,), 0.25))
    assert torch.equal(state["latent_std"], torch.full((16,), 0.07))
