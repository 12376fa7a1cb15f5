"""The chat page: static files, with headers that let a browser run and load nothing but them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"

# No text can become a script, and nothing can be fetched from, or sent to, anywhere but this server. The page makes no
# HTML from text at all: with Trusted Types the browser sees to that.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for anew each time, and answered with 304 as long as it is the same: an update shows at once.
    "Cache-Control": "no-cache",
}


async def page() -> Response:
    """Return the page itself."""
    return FileResponse(FOLDER / "index.html", headers=_HEADERS)


class Files(StaticFiles):
    """What the page is made of."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def file_response(self, full_path: str | os.PathLike[str], *args: Any, **options: Any) -> Response:
        """Return a file, or that it has not changed."""
        response = super().file_response(full_path, *args, **options)
        response.headers.update(_HEADERS)
        return response
