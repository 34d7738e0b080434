"""The web application: every answer of the page, behind the guard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

from bitlens.errors import BitlensError
from bitlens.explorer import FILES
from bitlens.explorer.asked import (
    Asked,
    FindAsked,
    HoldAsked,
    Latent,
    NearAsked,
    TextAsked,
    sentence,
)
from bitlens.explorer.explorer import Explorer, encoded
from bitlens.explorer.guard import Guard
from bitlens.explorer.keeping import Record
from bitlens.explorer.worker import Busy

TYPES = {".js": "text/javascript", ".html": "text/html; charset=utf-8"}
NOWHERE = "There is no such page."
SENTENCES = {
    400: "The question is not JSON of the form that is expected.",
    404: NOWHERE,
    405: "This is asked in another way: pages with GET, questions with POST.",
}


def create_app(explorer: Explorer, port: int) -> FastAPI:
    """port: at which it is served, and so which hosts it answers to."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    app.add_middleware(Guard, port=port)
    _add_answers(app, explorer)
    _add_questions(app, explorer)
    app.add_api_route("/", lambda: _file("index.html"))
    app.add_api_route("/{name}", _file)
    _speak(app)
    return app


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


def _add_answers(app: FastAPI, explorer: Explorer) -> None:
    """What a static copy has as files, too."""

    @app.get("/api/run.json")
    def run() -> Response:
        return _json(encoded(explorer.run()))

    @app.get("/api/latents.json")
    def latents() -> Response:
        return _json(explorer.latents)

    @app.get("/api/latents/{latent}.json")
    def latent(latent: Latent) -> Response:
        return _json(encoded(explorer.latent(latent)))

    @app.get("/api/compare.json")
    def compare() -> Response:
        return _json(explorer.compare)

    @app.get("/api/beside/{latent}.json")
    def beside(latent: Latent) -> Response:
        return _json(encoded(explorer.beside(latent)))


def _add_questions(app: FastAPI, explorer: Explorer) -> None:
    """What the language model or the codes are asked, one after another."""

    async def answer(request: Request, question: Callable[[Any], Record], asked: Asked) -> Response:
        future = explorer.worker.ask(lambda: encoded(question(asked)))
        answered = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(request.receive())  # all has been read: only its end comes
        try:
            await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not answered.done():
            answered.cancel()
            explorer.worker.give_up(future)
            return _said("Who asked has gone.", 499)
        return _json(answered.result())

    @app.post("/api/text")
    async def text(request: Request, asked: TextAsked) -> Response:
        return await answer(request, explorer.text, asked)

    @app.post("/api/hold")
    async def hold(request: Request, asked: HoldAsked) -> Response:
        return await answer(request, explorer.hold, asked)

    @app.post("/api/near")
    async def near(request: Request, asked: NearAsked) -> Response:
        return await answer(request, explorer.near, asked)

    @app.post("/api/find")
    async def find(request: Request, asked: FindAsked) -> Response:
        return await answer(request, explorer.find, asked)


def _file(name: str) -> Response:
    """A file of the page, by its name alone, so that no path leads elsewhere."""
    path = FILES.get(name)
    if path is None:
        return _said(NOWHERE, 404)
    return FileResponse(path, media_type=TYPES.get(path.suffix))


def _said(words: str, status: int) -> Response:
    return _json(encoded({"sentence": words}), status)


def _speak(app: FastAPI) -> None:
    """Whatever goes wrong is said in a sentence, and the server goes on."""

    @app.exception_handler(BitlensError)
    async def bad(request: Request, error: BitlensError) -> Response:
        status = 503 if isinstance(error, Busy) else 400 if request.method == "POST" else 404
        return _said(str(error).replace("`", ""), status)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return _said(
            SENTENCES.get(error.status_code, "That cannot be answered."), error.status_code
        )

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: RequestValidationError) -> Response:
        if request.method == "GET":  # an address is right or wrong
            return _said(NOWHERE, 404)
        return _said(sentence(error), 422)
