"""The built-in page and the files it is made of."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

__all__ = ["install_page"]


def install_page(app: FastAPI, folder: Path) -> None:
    """Serve `index.html` of `folder` at `/`, and the folder under `/static`."""

    @app.get("/", include_in_schema=False)
    async def show_page() -> FileResponse:
        return FileResponse(folder / "index.html", media_type="text/html")

    app.mount("/static", StaticFiles(directory=folder), name="static")
