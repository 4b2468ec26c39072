"""The server: routes, and what stands between a request and the engine.

FastAPI on uvicorn, in one process with one thread that computes. LitServe forms batches too, but
one model is one route there, in a process of its own for each: encode, decode and the two paths of
a roll-out share their weights here, and their batches are formed where the limits are kept.

    POST /v1/encode        photo -> tokens           GET /health   the process lives
    POST /v1/decode        tokens -> picture         GET /ready    it takes requests
    POST /v1/reconstruct   photo -> picture          GET /metrics  for Prometheus
    POST /v1/generate      label, seed -> picture    GET /v1/status  model, roll-out, drift
    POST /v1/judge         photo -> verdict, by the path that the roll-out says
    POST /v1/explain       photo -> what its first k tokens keep of it, for many k
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from softvq import __version__
from softvq.errors import UserError
from softvq.explain.contributions import prefix_counts
from softvq.serve import wire
from softvq.serve.batching import Full
from softvq.serve.limits import Limits
from softvq.serve.server import Refused, Server, Settings, log


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application. Raises UserError for a model, plan or store that cannot be opened."""
    server = Server(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.start()
        yield
        await server.stop()

    app = FastAPI(
        title="softvq", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Photos to a few continuous tokens and back.",
    )  # fmt: skip
    app.state.server = server
    app.middleware("http")(_guard(server))
    wire.describe_routes(app, _routes(server))
    _page(app)
    return app


OPEN = ("/", "/page/", "/health", "/ready", "/openapi.json")  # without a key


def _guard(server: Server) -> Callable[..., Awaitable[Response]]:
    """Around every request: key, rate, the body's size and pace, errors in words, figures."""
    limits = server.settings.limits

    async def guard(request: Request, call_next: Callable[..., Awaitable[Response]]) -> Response:
        started, route = time.perf_counter(), "unknown"
        try:
            asker = request.client.host if request.client else "?"
            free = request.url.path in OPEN or request.url.path.startswith("/page/")
            if server.keys.known and not free:
                scheme, _, given = request.headers.get("authorization", "").partition(" ")
                name = server.keys.name(given if scheme.lower() == "bearer" else None)
                if name is None:
                    raise Refused(401, "give 'Authorization: Bearer KEY' with a key of this server")
                asker = name
            if request.url.path.startswith("/v1/"):
                if after := server.rate.wait(asker):
                    raise Refused(429, f"more than {limits.rate:g} requests a second", after)
                if int(request.headers.get("content-length") or 0) > limits.bytes:
                    raise Refused(413, f"more than {limits.bytes:,} bytes")
            response = await call_next(request)
        except Refused as error:
            response = refusal(error)
        except ValueError:  # a content-length that is no number
            response = refusal(Refused(400, "the request's headers are damaged"))
        found = request.scope.get("route")
        route = getattr(found, "path", "unknown")
        server.metrics.requests.labels(route, response.status_code).inc()
        server.metrics.seconds.labels(route).observe(time.perf_counter() - started)
        return response

    return guard


def refusal(error: Refused) -> Response:
    """A reason as an answer."""
    headers = {} if error.after is None else {"Retry-After": str(max(1, round(error.after)))}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error.reason}, error.status, headers)


async def body_of(request: Request, limits: Limits) -> bytes:
    """A request's body. Raises Refused where it is too large, or comes too slowly."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.bytes:
                    raise Refused(413, f"more than {limits.bytes:,} bytes")
                parts.append(part)
    except ClientDisconnect:
        raise Refused(400, "the client has gone") from None
    except TimeoutError:
        raise Refused(408, f"the request took more than {limits.seconds:g} s to come") from None
    return b"".join(parts)


def _routes(server: Server) -> dict[str, Callable[[Request], Awaitable[Response]]]:
    limits, about = server.settings.limits, server.about

    def handled(answer: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                return await answer(request, await body_of(request, limits))
            except Refused as error:
                return refusal(error)
            except wire.BadRequest as error:
                return refusal(Refused(error.status, str(error)))
            except Full:
                return refusal(Refused(429, "too many requests wait; come again", 1.0))
            except UserError as error:
                log.error("%s", error)
                return refusal(Refused(500, "the model gave no answer; see the server's log"))

        return handle

    async def encode(request: Request, body: bytes) -> Response:
        asked = wire.photo_request(request, body)
        count = wire.check_tokens(asked.tokens or server.tokens, about)
        photo = await server.photo(asked.photo)
        fitted = await server.fitted(photo)
        latents = await server.encode(fitted)
        if server.batcher.waiting:  # drift takes a sample: no request waits for it
            server.metrics.unseen.inc()
        else:
            server.later(server.watched(photo, fitted, latents, asked.part))
        return wire.tokens_response(request, latents[:count], about)

    async def decode(request: Request, body: bytes) -> Response:
        latents = wire.tokens_request(request, body, about)
        return wire.picture_response(request, await server.decode(latents))

    async def reconstruct(request: Request, body: bytes) -> Response:
        asked = wire.photo_request(request, body)
        count = wire.check_tokens(asked.tokens or server.tokens, about)
        photo = await server.photo(asked.photo)
        fitted = await server.fitted(photo)
        latents = await server.encode(fitted)
        rebuilt = await server.decode(latents[:count])
        if not wire.wants_json(request):
            return wire.picture_response(request, rebuilt)
        psnr, distance = await server.batcher(("near",), (fitted, rebuilt))
        today, tokens = await server.judged(fitted), await server.judged(rebuilt)
        return wire.picture_response(
            request, rebuilt, original=fitted,
            facts={
                "tokens": count, "bytes": count * about.channels * 2, "psnr": round(psnr, 2),
                "eye_distance": round(distance, 4),
                "judge": {
                    "original": {"verdict": today.verdict, "score": round(today.score, 4)},
                    "rebuilt": {"verdict": tokens.verdict, "score": round(tokens.score, 4)},
                },
            },
        )  # fmt: skip

    async def generate(request: Request, body: bytes) -> Response:
        if about.classes is None:
            raise Refused(501, "this server has no generator")
        asked = wire.generate_request(body, about.classes)
        latents = await server.batcher(("generate",), asked)
        return wire.picture_response(request, await server.decode(latents))

    async def judge(request: Request, body: bytes) -> Response:
        asked = wire.photo_request(request, body)
        photo = await server.photo(asked.photo)
        part = asked.part or hashlib.sha256(asked.photo).hexdigest()
        return JSONResponse(await server.verdict(photo, asked.photo, part))

    async def explain(request: Request, body: bytes) -> Response:
        if not about.nested:
            raise Refused(501, "this model is not nested: it has one number of tokens")
        asked = wire.photo_request(request, body)
        fitted = await server.fitted(await server.photo(asked.photo))
        latents = await server.encode(fitted)
        kept = []
        for count in prefix_counts(about.tokens):  # one after the other: others come between
            rebuilt = await server.decode(latents[:count])
            psnr, distance = await server.batcher(("near",), (fitted, rebuilt))
            kept.append({
                "tokens": count, "bytes": count * about.channels * 2, "psnr": round(psnr, 2),
                "eye_distance": round(distance, 4),
            })  # fmt: skip
        return JSONResponse({"kept": kept})

    async def status(request: Request, body: bytes) -> Response:
        return JSONResponse(await asyncio.to_thread(server.status))

    async def alive(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        return JSONResponse({"ready": server.ready}, 200 if server.ready else 503)

    async def metrics(request: Request) -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    return {
        "encode": handled(encode), "decode": handled(decode), "reconstruct": handled(reconstruct),
        "generate": handled(generate), "judge": handled(judge), "explain": handled(explain),
        "status": handled(status), "health": alive, "ready": ready, "metrics": metrics,
    }  # fmt: skip


TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
}
SAFE = {  # the page needs nothing from elsewhere, and is framed by nobody
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def _page(app: FastAPI) -> None:
    """``/`` and its files, read once."""
    folder = files("softvq") / "serve" / "page"
    held = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}

    async def page(name: str = "index.html") -> Response:
        if name not in held:
            return JSONResponse({"error": "no such file"}, 404)
        kind = TYPES.get("." + name.rpartition(".")[2], "application/octet-stream")
        return Response(held[name], media_type=kind, headers=SAFE)

    async def first() -> Response:
        return await page()

    app.get("/", include_in_schema=False)(first)
    app.get("/page/{name}", include_in_schema=False)(page)
