"""The web application: every answer of the page, behind the guard."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from bitlens.errors import BitlensError
from bitlens.explorer.explorer import Explorer
from bitlens.explorer.guard import Guard

PAGE = Path(__file__).parent / "page"
NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.(html|css|js|svg|png|ico)")
TYPES = {".js": "text/javascript", ".html": "text/html; charset=utf-8"}


def create_app(explorer: Explorer, port: int) -> FastAPI:
    """port: at which it is served, and so which hosts it answers to."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    app.add_middleware(Guard, port=port)

    @app.get("/")
    def index() -> Response:
        return _file("index.html")

    @app.get("/api/run.json")
    def run() -> Any:
        return JSONResponse(explorer.run())

    @app.get("/api/latents.json")
    def latents() -> Any:
        return Response(explorer.latents(), media_type="application/json")

    @app.get("/api/latents/{latent:int}.json")
    def latent(latent: int) -> Any:
        return JSONResponse(explorer.latent(latent))

    @app.get("/{name}")
    def file(name: str) -> Response:
        return _file(name)

    _speak(app)
    return app


def _file(name: str) -> Response:
    """A file of the page: of a plain name, so that no path leads elsewhere."""
    path = PAGE / name
    if not NAME.fullmatch(name) or not path.is_file():
        return JSONResponse({"sentence": "There is no such page."}, 404)
    return FileResponse(path, media_type=TYPES.get(path.suffix))


def _speak(app: FastAPI) -> None:
    """Whatever goes wrong is said in a sentence, and the server goes on."""

    def said(sentence: str, status: int) -> Response:
        return JSONResponse({"sentence": sentence}, status)

    @app.exception_handler(BitlensError)
    def bad(request: Request, error: BitlensError) -> Response:
        return said(str(error), 400)

    @app.exception_handler(HTTPException)
    def other(request: Request, error: HTTPException) -> Response:
        return said("There is no such page." if error.status_code == 404 else error.detail,
                    error.status_code)

    @app.exception_handler(RequestValidationError)
    def unfit(request: Request, error: RequestValidationError) -> Response:
        return said("The question is not of its form.", 422)
