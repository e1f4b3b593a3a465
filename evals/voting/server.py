"""The web page of a vote: who may see it, and what it is told."""

import functools
import hmac
import json
import re
from importlib.resources import files
from typing import Any, get_args

from evals.voting.ballot import Said, Side, Vote, left_is_first
from evals.voting.votes import MEDIA, Votes, as_json

# This file has no `from __future__ import annotations`: FastAPI reads the types of handlers, which are imported where
# the application is made.

COOKIE = "visalign_vote"
BODY = 4096
"""Bytes of a vote, at most."""
RATER = re.compile(r"[\w .-]{1,40}")
SAYS = {*get_args(Side), "tie", "bad"}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Told = tuple[dict[str, Any], int]
"""What is answered, and the status."""


def application(votes: Votes, token: str) -> Any:
    """Return the FastAPI application of a vote.

    The page is opened with `?token=`, which becomes a cookie; all else wants the cookie. What is said of a pair does
    not tell who made which picture.
    """
    import fastapi
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = files("evals.voting").joinpath("page.html").read_text(encoding="utf-8")

    @app.middleware("http")
    async def admit(request: fastapi.Request, answer: Any) -> Response:
        given = request.query_params.get("token") or request.cookies.get(COOKIE, "")
        if not hmac.compare_digest(given.encode(errors="replace"), token.encode()):
            return JSONResponse({"error": "open the address that visalign vote has printed, with its token"}, 401)
        response = await answer(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/")
    def show() -> HTMLResponse:
        response = HTMLResponse(page)
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response

    @app.get("/next")
    def show_next(rater: str) -> JSONResponse:
        return JSONResponse(*what_is_next(votes, rater))

    @app.get(f"/{MEDIA}/{{name}}")
    def show_medium(name: str) -> Response:
        return FileResponse(votes.folder / MEDIA / name) if votes.shows(name) else Response(status_code=404)

    @app.post("/vote")
    async def take(request: fastapi.Request) -> JSONResponse:
        body = await _bounded(request)
        kept = ({"error": f"a vote has at most {BODY} bytes"}, 413) if body is None else await _aside(votes, body)
        return JSONResponse(*kept)

    @app.get("/standing")
    def show_standing() -> JSONResponse:
        return JSONResponse(as_json(votes))

    return app


async def _bounded(request: Any) -> bytes | None:
    """Return the body of a request; None where it is longer than any vote."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY:
            return None
    return body


async def _aside(votes: Votes, body: bytes) -> Told:
    """Keep a vote in another thread, for the disk is waited for."""
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(functools.partial(keep, votes, body))


def what_is_next(votes: Votes, rater: str) -> Told:
    """Return what a rater sees next, sides as this rater sees them."""
    if not RATER.fullmatch(rater):
        return {"error": "a rater's name has 1 to 40 letters, digits, spaces, dots and dashes"}, 422
    pair, done = votes.next(rater), votes.count(rater)
    if pair is None:
        waiting = {} if votes.asking is None else {"waiting": True}
        return {"pair": None, "done": done, **waiting}, 200
    shown = pair.media if left_is_first(votes.seed, pair, rater) else pair.media[::-1]
    left, right = (f"/{MEDIA}/{name}" for name in shown)
    number = votes.pairs.index(pair)
    told = {"pair": number, "prompt": pair.prompt, "left": left, "right": right}
    told |= {"source": f"/{MEDIA}/{pair.source}"} if pair.source else {}
    return {**told, "done": done, "of": len(votes.pairs)}, 200


def keep(votes: Votes, body: bytes) -> Told:
    """Keep the vote that a page has sent; one that is known is not kept again."""
    try:
        vote = parsed(body, votes)
    except (ValueError, LookupError, TypeError) as error:
        return {"error": f"this is no vote: {error}"}, 422
    return {"kept": votes.add(vote), "done": votes.count(vote.rater)}, 200


def parsed(body: bytes, votes: Votes) -> Vote:
    """Return the vote of {"pair", "rater", "said"}, sides as the rater saw them.

    Raises:
        LookupError: If a key is missing.
        TypeError: If it is no object.
        ValueError: If it is no JSON, or a value is none that there is.
    """
    told = json.loads(body)
    number, rater, said = told["pair"], told["rater"], told["said"]
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(votes.pairs):
        raise ValueError(f"there is no pair {number!r:.40}")
    if not isinstance(rater, str) or not RATER.fullmatch(rater):
        raise ValueError(f"the rater is called {rater!r:.60}")
    if not isinstance(said, str) or said not in SAYS:
        raise ValueError(f"'said' is {said!r:.40}, expected one of {', '.join(sorted(SAYS))}")
    pair = votes.pairs[number]
    first, second = ("left", "right") if left_is_first(votes.seed, pair, rater) else ("right", "left")
    meant: dict[str, Said] = {first: "first", second: "second", "tie": "tie", "bad": "bad"}
    return Vote(pair.name, rater, meant[said])
