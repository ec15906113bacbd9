"""The built-in page, the documentation of the API, and the files they are made of."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

__all__ = ["install_page"]


def install_page(app: FastAPI, folder: Path) -> None:
    """Serve the page at `/`, the documentation at `/docs`, and all of `folder` under `/static`."""

    @app.get("/", include_in_schema=False)
    async def show_page() -> FileResponse:
        return FileResponse(folder / "index.html", media_type="text/html")

    @app.get("/docs", include_in_schema=False)
    async def show_documentation() -> FileResponse:
        return FileResponse(folder / "docs.html", media_type="text/html")

    app.mount("/static", StaticFiles(directory=folder), name="static")
