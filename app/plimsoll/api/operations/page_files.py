"""Files of the pages, as a browser gets them: the package's own, under a strict policy."""

from importlib.resources import files

from fastapi import Response
from starlette.exceptions import HTTPException

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
}
# A page's own files and nothing else: no script from elsewhere, no frame around it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A server that was replaced must not be watched with its predecessor's page.
    "Cache-Control": "no-cache",
}


class PageFiles:
    """The servable files of a folder below `plimsoll.api.pages`, read when they are asked for.

    images: the sources of images that the policy allows.
    """

    def __init__(self, folder: str = "", *, images: str = "'self'") -> None:
        self._headers = {**HEADERS, "Content-Security-Policy": POLICY.format(images=images)}
        self._files = {
            file.name: (file, MEDIA_TYPES[suffix])
            for file in files("plimsoll.api.pages").joinpath(folder).iterdir()
            if (suffix := f".{file.name.rpartition('.')[2]}") in MEDIA_TYPES
        }

    def response(self, name: str) -> Response:
        """A file of the folder. Raises HTTPException for any other name."""
        if name not in self._files:
            raise HTTPException(404)
        file, media_type = self._files[name]
        return Response(file.read_bytes(), headers=self._headers, media_type=media_type)
