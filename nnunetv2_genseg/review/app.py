"""What the server of `genseg review` answers: the page, pictures of pairs, and decisions that it keeps."""

from __future__ import annotations

import hmac
import json
import sqlite3
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.reading import in_form
from nnunetv2_genseg.plots.slices import legend
from nnunetv2_genseg.review.decisions import Decisions, Verdict
from nnunetv2_genseg.review.pictures import outlines, slice_picture
from nnunetv2_genseg.trainers.reviewed_pairs import ReviewedPairs, ShownCase

PAGE = Path(__file__).parent / "page"
LONGEST_NAME = 100
"""Characters of a reviewer's name."""
SIGNS = " .,'’@-_"
"""In names of reviewers, beside letters, their marks and digits."""
LARGEST_DECISION = 2**14
"""Bytes of a request that holds a decision."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer: only the server's own files are used, the address with its token is told to nobody, nothing is kept."""


@dataclass(frozen=True)
class Review:
    """The answers, a method each."""

    pairs: ReviewedPairs
    decisions: Decisions

    def listed(self, request: Request) -> Response:
        """All pairs, with the decisions of the reviewer."""
        own = self.decisions.of(_reviewer(request))
        pairs = [{"name": name, "source": source, "verdict": own.get(name)} for name, source in self.pairs.sources.items()]
        return JSONResponse({"pairs": pairs, "labels": legend(self.pairs.synthetic.description["labels"])})

    def about(self, request: Request) -> Response:
        """What the page needs to know of a pair before it asks for pictures."""
        synthetic = self._case(request, real=False)
        real = self._case(request, real=True) if self.pairs.real is not None else None
        window = (synthetic if real is None else real).window
        return JSONResponse(
            {
                "channels": ["RGB"] if synthetic.colour else self.pairs.synthetic.channels,
                "windows": window.T[:1].tolist() if synthetic.colour else window.T.tolist(),
                "synthetic": _form(synthetic),
                "real": None if real is None else _form(real),
            }
        )

    def picture(self, request: Request) -> Response:
        """A slice as PNG."""
        case, k = self._slice(request)
        try:
            channel, low, high = (kind(request.query_params[key]) for kind, key in PARAMETERS)
        except (KeyError, ValueError):
            raise HTTPException(400, "a picture needs a channel and the numbers low and high") from None
        if not (0 <= channel < len(case.image) and isfinite(low) and isfinite(high)):
            raise HTTPException(400, "no such channel or window")
        return Response(slice_picture(case, channel=int(channel), k=k, low=low, high=high), media_type="image/png")

    def outline(self, request: Request) -> Response:
        """The outlines of the labels in a slice as PNG."""
        return Response(outlines(*self._slice(request)), media_type="image/png")

    async def decide(self, request: Request) -> Response:
        """Keeps a decision before it answers; review.csv follows after the answer."""
        reviewer = _reviewer(request)
        try:
            content = json.loads(await _small_body(request))
            name = content.pop("pair")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise HTTPException(400, "a decision is a mapping in JSON that names its pair") from None
        if not isinstance(name, str) or name not in self.pairs.sources:
            raise HTTPException(404, "there is no such pair")
        verdict = in_form(content, Verdict, "a decision", "the request")
        await run_in_threadpool(self.decisions.record, reviewer, name, verdict)
        return JSONResponse(verdict.model_dump(), background=BackgroundTask(self.decisions.export))

    def undo(self, request: Request) -> Response:
        """Takes the reviewer's last decision back."""
        reviewer = _reviewer(request)
        name = self.decisions.undo(reviewer)
        verdict = self.decisions.of(reviewer).get(name) if name is not None else None
        return JSONResponse({"pair": name, "verdict": verdict}, background=BackgroundTask(self.decisions.export))

    def table(self, request: Request) -> Response:
        """review.csv."""
        return FileResponse(self.decisions.export(), media_type="text/csv; charset=utf-8", filename="review.csv")

    def _case(self, request: Request, real: bool) -> ShownCase:
        try:
            return self.pairs.case(request.path_params["name"], real)
        except KeyError:
            raise HTTPException(404, "there is no such pair") from None

    def _slice(self, request: Request) -> tuple[ShownCase, int]:
        case, k = self._case(request, request.path_params["part"] == "real"), int(request.path_params["k"])
        if k >= len(case.labels) or request.path_params["part"] not in ("real", "synthetic"):
            raise HTTPException(404, "there is no such slice")
        return case, k


PARAMETERS: tuple[tuple[type[int] | type[float], str], ...] = ((int, "channel"), (float, "low"), (float, "high"))
"""Of a picture."""


def _reviewer(request: Request) -> str:
    """In letters of any script, in one form (NFC) however it was typed; nothing that a program for tables takes for a formula."""
    name = unicodedata.normalize("NFC", request.query_params.get("reviewer", "").strip())
    allowed = all(sign in SIGNS or unicodedata.category(sign)[0] in "LMN" for sign in name)
    if not (name[:1].isalnum() and allowed and len(name) <= LONGEST_NAME):
        raise HTTPException(
            400, "the name of a reviewer begins with a letter or digit and has letters, digits, spaces and . , ' @ - _ alone"
        )
    return name


async def _small_body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_DECISION:
            raise HTTPException(413, f"a decision has at most {LARGEST_DECISION} bytes")
    return body


def _form(case: ShownCase) -> dict[str, Any]:
    slices, height, width = case.labels.shape
    of_rows, of_columns = case.spacing[1:]
    return {"slices": slices, "fullest": case.fullest, "aspect": (width * of_columns) / (height * of_rows)}


def application(pairs: ReviewedPairs, decisions: Decisions, token: str, hosts: list[str]) -> Starlette:
    """The server.

    Args:
        pairs: that are judged.
        decisions: on them.
        token: what every address begins with; without it nothing is answered.
        hosts: names by which a browser may call this machine.
    """
    review = Review(pairs, decisions)

    async def guarded(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.url.path.split("/")[1]
        known = hmac.compare_digest(given.encode(), token.encode())
        response = await proceed(request) if known else JSONResponse({"message": "not found"}, 404)
        response.headers.update(HEADERS)
        return response

    def told(status: int) -> Callable[[Request, Exception], Response]:
        return lambda request, error: JSONResponse({"message": str(error)}, status)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"message": error.detail}, error.status_code)

    routes = [
        Route("/pairs", review.listed),
        Route("/pairs/{name}", review.about),
        Route("/pairs/{name}/{part}/{k:int}.png", review.picture),
        Route("/pairs/{name}/{part}/{k:int}-outline.png", review.outline),
        Route("/decisions", review.decide, methods=["POST"]),
        Route("/undo", review.undo, methods=["POST"]),
        Route("/review.csv", review.table),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(BaseHTTPMiddleware, dispatch=guarded),
        ],
        exception_handlers={GenSegError: told(422), sqlite3.Error: told(500), HTTPException: refused},
    )
