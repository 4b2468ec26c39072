"""Requests and answers as bytes: photos as they are or in base64, tokens as safetensors or JSON."""

import base64
import binascii
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from safetensors import SafetensorError

from softvq.serve.engine import About

SAFETENSORS = "application/vnd.safetensors"
LARGEST = 1e4  # of a normalised latent, which is about 1
MOST = 2**31 - 1


class BadRequest(Exception):
    """What a client can mend: ``status`` and the reason in words."""

    def __init__(self, reason: str, status: int = 422):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class PhotoRequest:
    """A photo's file, how many tokens of it are wanted, and the part that it shows."""

    photo: bytes
    tokens: int | None
    part: str | None


def check_tokens(count: int, about: About) -> int:
    """The count. Raises BadRequest where a photo cannot be kept as that many tokens."""
    if not 1 <= count <= about.tokens:
        raise BadRequest(f"tokens must be 1 to {about.tokens}, got {count}")
    if count != about.tokens and not about.nested:
        raise BadRequest(f"this model keeps a photo as {about.tokens} tokens: it is not nested")
    return count


def photo_request(request: Request, body: bytes) -> PhotoRequest:
    """The body is the photo's file, or JSON with it in base64; the rest may be in the query."""
    tokens: Any = request.query_params.get("tokens")
    part: Any = request.query_params.get("part")
    if _kind(request) == "application/json":
        values = _json(body)
        tokens, part = values.get("tokens", tokens), values.get("part", part)
        try:
            body = base64.b64decode(values["image"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise BadRequest('give the photo\'s file in base64 as "image"') from None
    if not body:
        raise BadRequest("no photo: the body is empty")
    if part is not None and (not isinstance(part, str) or not 0 < len(part) <= 200):
        raise BadRequest("part must be a text of 1 to 200 characters")
    return PhotoRequest(body, None if tokens is None else _whole(tokens, "tokens", 1), part)


def tokens_request(request: Request, body: bytes, about: About) -> np.ndarray:
    """Normalised latents float32 [k, C]: a safetensors file with "latents", or JSON "tokens"."""
    if _kind(request) == "application/json":
        try:
            latents = np.asarray(_json(body).get("tokens"), np.float64)
        except (TypeError, ValueError, OverflowError):
            raise BadRequest('give "tokens" as a list of lists of numbers') from None
    else:
        try:
            latents = safetensors.numpy.load(body)["latents"]
        # Its reader fails in any way on what is no file of its own.
        except (SafetensorError, KeyError, ValueError, TypeError, OverflowError):
            raise BadRequest('give a safetensors file with a tensor "latents", or JSON') from None
    if latents.ndim == 3 and len(latents) == 1:
        latents = latents[0]
    if latents.ndim != 2 or latents.shape[1] != about.channels or latents.dtype.kind != "f":
        raise BadRequest(f"tokens must be floats [k, {about.channels}], got {list(latents.shape)}")
    check_tokens(len(latents), about)
    if not (np.abs(latents) < LARGEST).all():
        raise BadRequest("tokens must be finite, and normalised: about -5 to 5")
    return latents.astype(np.float32)


def generate_request(body: bytes, classes: tuple[str, ...]) -> tuple[int, int]:
    """Label and seed of JSON {"label": name or number, "seed": number}."""
    values = _json(body or b"{}")
    label, seed = values.get("label", 0), _whole(values.get("seed", 0), "seed", 0)
    if isinstance(label, str) and label in classes:
        return classes.index(label), seed
    if isinstance(label, str) or isinstance(label, bool) or not isinstance(label, int):
        raise BadRequest(f"label must be one of {', '.join(classes[:20]) or 'none'}, or a number")
    if not 0 <= label < max(1, len(classes)):
        raise BadRequest(f"label must be 0 to {max(0, len(classes) - 1)}")
    return label, seed


def tokens_response(request: Request, latents: np.ndarray, about: About) -> Response:
    """As JSON, or as safetensors for who accepts it."""
    if SAFETENSORS in request.headers.get("accept", ""):
        held = {"latents": np.ascontiguousarray(latents[None])}
        data = safetensors.numpy.save(held, {"tokenizer": about.tokenizer})
        return Response(data, media_type=SAFETENSORS)
    return JSONResponse({"tokens": latents.tolist(), "tokenizer": about.tokenizer})


def picture_response(
    request: Request,
    picture: np.ndarray,
    original: np.ndarray | None = None,
    facts: dict[str, Any] | None = None,
) -> Response:
    """A PNG, or for who accepts JSON the PNG in base64 beside its figures."""
    if wants_json(request):
        values = {"image": _base64(picture), **(facts or {})}
        if original is not None:
            values["original"] = _base64(original)
        return JSONResponse(values)
    return Response(png(picture), media_type="image/png")


def wants_json(request: Request) -> bool:
    """Whether the client asks for JSON in place of a picture."""
    return "application/json" in request.headers.get("accept", "")


def png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as the bytes of a PNG file."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _base64(picture: np.ndarray) -> str:
    return base64.b64encode(png(picture)).decode()


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _json(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON", 400) from None
    if not isinstance(values, dict):
        raise BadRequest("the body is not a JSON object")
    return values


def _whole(value: Any, name: str, least: int) -> int:
    text = str(value)
    good = not isinstance(value, bool) and text.isascii() and text.isdigit() and len(text) < 11
    if not good or not least <= int(text) <= MOST:
        raise BadRequest(f"{name} must be a whole number of {least} or more")
    return int(text)


# ---- what OpenAPI says ----

PHOTO = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "string", "format": "byte"},
                    "tokens": {"type": "integer", "minimum": 1},
                    "part": {"type": "string", "minLength": 1, "maxLength": 200},
                },
            }
        },
    },
}
TOKENS = {
    "required": True,
    "content": {
        SAFETENSORS: {"schema": {"type": "string", "format": "binary"}},
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["tokens"],
                "properties": {
                    "tokens": {
                        "type": "array",
                        "items": {"type": "array", "items": {"type": "number"}},
                    }
                },
            }
        },
    },
}
DRAWN = {
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "label": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]},
                    "seed": {"type": "integer", "minimum": 0, "maximum": MOST},
                },
            }
        }
    }
}
COUNT = {"name": "tokens", "in": "query", "schema": {"type": "integer", "minimum": 1}}
PART = {
    "name": "part", "in": "query",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}  # fmt: skip
ROUTES: dict[str, tuple[str, str, str, Any, list[Any], tuple[str, ...]]] = {
    "encode": (
        "POST", "/v1/encode", "A photo's tokens.", PHOTO, [COUNT, PART],
        ("application/json", SAFETENSORS),
    ),
    "decode": (
        "POST", "/v1/decode", "The picture of tokens.", TOKENS, [],
        ("image/png", "application/json"),
    ),
    "reconstruct": (
        "POST", "/v1/reconstruct", "A photo as its tokens give it back, with figures.", PHOTO,
        [COUNT, PART], ("image/png", "application/json"),
    ),
    "generate": (
        "POST", "/v1/generate", "A new picture.", DRAWN, [], ("image/png", "application/json"),
    ),
    "judge": (
        "POST", "/v1/judge", "The verdict on a photo, by the path of the roll-out's stage.", PHOTO,
        [PART], ("application/json",),
    ),
    "explain": (
        "POST", "/v1/explain", "What a photo's first k tokens keep of it, for many k.", PHOTO, [],
        ("application/json",),
    ),
    "status": ("GET", "/v1/status", "Model, roll-out and drift.", None, [], ("application/json",)),
    "health": ("GET", "/health", "Whether the process lives.", None, [], ("application/json",)),
    "ready": ("GET", "/ready", "Whether it takes requests.", None, [], ("application/json",)),
    "metrics": ("GET", "/metrics", "Figures for Prometheus.", None, [], ("text/plain",)),
}  # fmt: skip
REASONS = {
    "400": "The body is not what its type says.",
    "401": "A key is missing, or nobody's.",
    "408": "The request came too slowly.",
    "413": "Too many bytes or pixels.",
    "422": "A photo, tokens or a value that cannot be used.",
    "429": "Too many requests; Retry-After says when to come again.",
    "500": "The model gave no answer.",
    "501": "This server has no generator; its model is not nested.",
    "503": "Not ready yet.",
}
ERROR = {
    "application/json": {
        "schema": {
            "type": "object", "required": ["error"], "properties": {"error": {"type": "string"}},
        }
    }
}  # fmt: skip


def describe_routes(
    app: FastAPI, answers: dict[str, Callable[[Request], Awaitable[Response]]]
) -> None:
    """Add every route with what OpenAPI says of it: bodies are read by hand, within limits."""
    for name, (method, path, about, body, parameters, kinds) in ROUTES.items():
        extra: dict[str, Any] = {"parameters": parameters} if parameters else {}
        if body:
            extra["requestBody"] = body
        extra["responses"] = {
            "200": {"description": "Done.", "content": {kind: {} for kind in kinds}},
            **{code: {"description": why, "content": ERROR} for code, why in REASONS.items()},
        }
        app.add_api_route(
            path, answers[name], methods=[method], name=name, summary=about, openapi_extra=extra,
            response_model=None,
        )  # fmt: skip
