"""The server over a real socket: answers are the library's, limits hold, nothing is lost."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from softvq import coding, models
from softvq.errors import UserError
from softvq.serve.app import Settings, create_app
from softvq.serve.batching import Batcher, Full
from softvq.serve.client import Client, Refusal
from softvq.serve.limits import Keys, Limits, Rate
from softvq.serve.metrics import Metrics
from softvq.serve.plan import Criterion, Plan
from softvq.serve.run import _open_files

KEY = "0123456789abcdef0123"
PLAN = Plan(criteria=(Criterion("agreement", min=0.2),), least=20, window=100)


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[str]:
    """A server on a free port of this machine; stopped as SIGTERM stops it."""
    app = create_app(settings)
    config = uvicorn.Config(app, port=0, log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "keys.txt").write_text(f"# lines\nline-3 {KEY}\n")
    settings = Settings(
        plan=PLAN, store=f"sqlite:///{folder / 'softvq.db'}", precision="fp32",
        keys=str(folder / "keys.txt"), limits=Limits(bytes=200_000, pixels=100_000, seconds=1.0),
    )  # fmt: skip
    with running(settings) as url:
        yield url


@pytest.fixture
def client(server) -> Client:
    return Client(server, KEY, retries=0)


def photo(seed: int, height: int = 70, width: int = 90) -> bytes:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (9, 9, 3)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def tokenizer():
    return models.open_tokenizer("shipped")


def test_tokens_are_the_librarys(client, tokenizer):
    pictures = [photo(i, 50 + i, 90 - i) for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(client.encode, pictures))
    wanted = coding.encode_all(tokenizer, [Image.open(io.BytesIO(one)) for one in pictures])
    assert np.abs(np.stack(found) - wanted.numpy()).max() < 1e-4
    decoded = Image.open(io.BytesIO(client.decode(found[0])))
    known = coding.decode_all(tokenizer, wanted[:1])[0].astype(int)
    assert np.abs(np.asarray(decoded).astype(int) - known).max() <= 1


def test_json_and_safetensors_say_the_same(client):
    tokens = client.encode(photo(0))
    body = json.dumps({"image": base64.b64encode(photo(0)).decode()}).encode()
    said = json.loads(client.ask("/v1/encode", body, {}, "application/json", "application/json"))
    assert np.allclose(said["tokens"], tokens, atol=1e-5)
    body = json.dumps({"tokens": said["tokens"]}).encode()
    assert client.ask("/v1/decode", body, {}, "application/json") == client.decode(tokens)


def test_reconstruct_says_how_near(client):
    found = client.reconstruct(photo(1))
    assert found["tokens"] == 64 and found["bytes"] == 64 * 32 * 2
    assert 10 < found["psnr"] < 50 and found["judge"]["original"]["verdict"]
    for name in ("image", "original"):
        assert Image.open(io.BytesIO(base64.b64decode(found[name]))).size == (256, 256)


def test_explain_says_what_so_many_tokens_keep(client):
    kept = client.explain(photo(1))
    assert [kept[0]["tokens"], kept[-1]["tokens"]] == [1, 64]
    assert kept[-1]["psnr"] == client.reconstruct(photo(1))["psnr"] > kept[0]["psnr"]
    assert kept[-1]["eye_distance"] < kept[0]["eye_distance"]


def test_generate_is_one_picture_for_a_seed(client):
    first = client.generate("grocery_apple", 7)
    assert first == client.generate(2, 7) != client.generate("grocery_apple", 8)


def test_judge_answers_by_todays_path_in_shadow_and_compares(client):
    for i in range(25):
        found = client.judge(photo(i), part=f"part {i}")
        assert (found["path"], found["stage"]) == ("today", "shadow")
    deadline = time.time() + 60
    while (state := client.status()["rollout"])["comparisons"] < 20:
        assert time.time() < deadline
        time.sleep(0.2)
    assert state["stage"] == "shadow" and state["evidence"][0]["metric"] == "agreement"


BAD = [
    ("/v1/encode", b"", 422, "body is empty"),
    ("/v1/encode", b"no photo", 422, "not an image"),
    ("/v1/encode", photo(0)[:500], 422, "damaged|truncated"),
    ("/v1/encode?tokens=300", photo(0), 422, "1 to 64"),
    ("/v1/encode?tokens=99999999999", photo(0), 422, "whole number"),
    ("/v1/encode?part=" + "x" * 201, photo(0), 422, "1 to 200"),
    ("/v1/encode", b"x" * 200_001, 413, "200,000 bytes"),
    ("/v1/encode", photo(0, 400, 400), 413, "bomb"),
    ("/v1/decode", b"", 422, "safetensors"),
    ("/v1/decode", b"\xff" * 100, 422, "safetensors"),
]


@pytest.mark.parametrize("path, body, status, said", BAD)
def test_what_cannot_be_used_is_refused_with_a_reason(client, path, body, status, said):
    with pytest.raises(Refusal) as refused:
        client.ask(path, body)
    assert refused.value.status == status
    assert re.search(said, refused.value.reason)


BAD_JSON = [
    ("/v1/encode", "{", 400), ("/v1/encode", "[1]", 422), ("/v1/encode", '{"image": 3}', 422),
    ("/v1/decode", '{"tokens": [[1, 2], [3]]}', 422), ("/v1/decode", '{"tokens": "x"}', 422),
    ("/v1/decode", '{"tokens": [[1e999]]}', 422), ("/v1/decode", "[" * 10_000, 400),
    ("/v1/generate", '{"label": "unicorn"}', 422), ("/v1/generate", '{"label": true}', 422),
    ("/v1/generate", '{"label": 24}', 422), ("/v1/generate", '{"seed": -1}', 422),
]  # fmt: skip


@pytest.mark.parametrize("path, body, status", BAD_JSON)
def test_bad_json_is_refused(client, path, body, status):
    with pytest.raises(Refusal) as refused:
        client.ask(path, body.encode(), {}, "application/json")
    assert refused.value.status == status and refused.value.reason


def test_keys(server):
    for key in (None, "", "wrong", KEY[:-1], KEY + "x", "ü" * 20):
        with pytest.raises((Refusal, UnicodeEncodeError)) as refused:
            Client(server, key, retries=0).status()
        if isinstance(refused.value, Refusal):
            assert refused.value.status == 401
    for path in ("/health", "/ready", "/", "/page/app.js"):
        assert urllib.request.urlopen(server + path).status == 200


def test_a_bomb_a_slow_client_and_idle_connections_stop_nothing(server, client):
    host, port = server.removeprefix("http://").split(":")
    _open_files()  # both ends are in this process
    idle = [socket.create_connection((host, int(port))) for _ in range(1000)]
    slow = socket.create_connection((host, int(port)))
    slow.sendall(
        b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\nabc"
    )
    out = io.BytesIO()
    Image.fromarray(np.zeros((10_000, 10_000), np.uint8)).save(out, "PNG", compress_level=9)
    assert len(out.getvalue()) < 200_000
    with pytest.raises(Refusal, match="413.*bomb"):
        client.encode(out.getvalue())
    assert client.encode(photo(0)).shape == (64, 32)
    slow.settimeout(20)
    assert b"408" in slow.recv(4096)
    for connection in [*idle, slow]:
        connection.close()


def test_metrics_are_prometheus(client):
    client.encode(photo(0))
    text = client.ask("/metrics").decode()
    assert 'softvq_requests_total{route="/v1/encode",status="200"}' in text
    assert 'softvq_batch_items_bucket{le="1.0",work="encode"}' in text


def test_nothing_of_a_request_is_logged(server, client, caplog):
    log = logging.getLogger("softvq.serve")
    log.propagate = True
    with caplog.at_level(logging.DEBUG):
        client.judge(photo(3), part="SECRET-PART-9")
        with contextlib.suppress(Refusal):
            client.ask("/v1/encode?part=SECRET-PART-9", b"junk")
        with contextlib.suppress(Refusal):
            Client(server, "SECRET-KEY-0000000000", retries=0).status()
    assert "SECRET" not in caplog.text and KEY not in caplog.text and "/v1/" not in caplog.text


def test_the_store_keeps_no_part_number(tmp_path):
    settings = Settings(store=f"sqlite:///{tmp_path / 'softvq.db'}", precision="fp32", plan=PLAN)
    with running(settings) as url:
        Client(url).judge(photo(0), part="SECRET-PART-9")
        time.sleep(1)
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"SECRET" not in held and len(held) > 1000


def test_a_stop_finishes_what_was_accepted(tmp_path):
    settings = Settings(store=f"sqlite:///{tmp_path / 'softvq.db'}", precision="fp32", wait=0.2)
    with ThreadPoolExecutor(8) as pool:
        with running(settings) as url:
            answers = [pool.submit(Client(url, retries=0).encode, photo(i)) for i in range(8)]
            time.sleep(0.1)
        assert all(answer.result().shape == (64, 32) for answer in answers)


# ---- parts ----


def test_requests_are_computed_together():
    sizes: list[int] = []

    def work(kind: tuple, items) -> list:
        sizes.append(len(items))
        time.sleep(0.02)
        return [item * 2 for item in items]

    async def ask() -> None:
        batcher = Batcher({"double": work}, 8, 0.01, 100, Metrics())
        assert await asyncio.gather(*(batcher(("double",), i) for i in range(20))) == [
            2 * i for i in range(20)
        ]
        await batcher.close()
        with pytest.raises(Full):
            await batcher(("double",), 1)

    asyncio.run(ask())
    assert max(sizes) == 8 and len(sizes) <= 5


def test_kinds_do_not_mix_and_an_error_is_its_batchs_alone():
    def work(kind: tuple, items) -> list:
        if kind[1] == "bad":
            raise RuntimeError("broken")
        return [kind[1]] * len(items)

    async def ask() -> None:
        batcher = Batcher({"a": work}, 8, 0.001, 100, Metrics())
        kinds = ["x", "bad", "y", "x"]
        found = await asyncio.gather(
            *(batcher(("a", kind), 0) for kind in kinds), return_exceptions=True
        )
        assert [found[0], found[2], found[3]] == ["x", "y", "x"]
        assert isinstance(found[1], RuntimeError)
        await batcher.close()

    asyncio.run(ask())


def test_a_full_queue_refuses_and_who_has_gone_is_left_out():
    started, seen = threading.Event(), []

    def work(kind: tuple, items) -> list:
        seen.extend(items)
        started.set()
        time.sleep(0.1)
        return items

    async def ask() -> None:
        batcher = Batcher({"a": work}, 1, 0, 2, Metrics())
        first = asyncio.create_task(batcher(("a",), 0))
        await asyncio.to_thread(started.wait)
        waiting = [asyncio.create_task(batcher(("a",), i)) for i in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await batcher(("a",), 3)
        waiting[0].cancel()
        assert await first == 0 and await waiting[1] == 2
        await batcher.close()

    asyncio.run(ask())
    assert seen == [0, 2]


def test_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rate = Rate(2.0)
    assert [rate.wait("a") for _ in range(4)] == [0, 0, 0, 0]
    assert rate.wait("a") == 0.5 and rate.wait("b") == 0
    now[0] = 0.5
    assert rate.wait("a") == 0
    assert Rate(0).wait("a") == 0


@pytest.mark.parametrize(
    "text, said", [("", "holds no key"), ("a short", "line 1"), (None, "not a")]
)
def test_bad_files_of_keys_are_one_line(tmp_path, text, said):
    path = tmp_path / "keys.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said):
        Keys(path)


def test_what_cannot_be_served_is_one_line(tmp_path):
    for wrong, said in (
        ({"model": str(tmp_path)}, "no config.json"),
        ({"plan": replace(PLAN, tokens=300)}, "1 to 64"),
        ({"store": "nonsense"}, "--store"),
    ):
        with pytest.raises(UserError, match=said):
            create_app(Settings(**{"store": f"sqlite:///{tmp_path / 'softvq.db'}"} | wrong))


def test_every_word_of_the_page_is_there_in_both_languages():
    folder = Path(__file__).parent.parent / "softvq" / "serve" / "page"
    html = (folder / "index.html").read_text(encoding="utf-8")
    script = (folder / "app.js").read_text(encoding="utf-8")
    english, japanese = script.split("  ja: {")
    for word in {
        *re.findall(r'data-say="([\w-]+)"', html),
        *re.findall(r'say\("([\w-]+)"\)', script),
    }:
        for part in (english, japanese):
            assert re.search(rf'["\s]{word}"?: ', part), word
    for text in (html, script, (folder / "style.css").read_text(encoding="utf-8")):
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
