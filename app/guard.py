"""Who may come in: requests that name this machine, and that know the key if there is one.

Knows headers and OpenAI's error object; knows nothing about sockets, routes or pictures.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from visual_ar.app.api import ApiError

OPEN = ("/health",)
"""Paths that need no key: whoever watches a service knows none."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?", re.ASCII | re.IGNORECASE)
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Entrance:
    """Who may come in.

    Attributes:
        hosts: names, in lower case, that the `Host` of a request may have; None is any. A page
            elsewhere can make a browser here call its own name and have that lead to loopback
            (DNS rebinding), but it cannot make the browser say another name.
        key: that requests must carry as `Authorization: Bearer KEY`; None is none.
    """

    hosts: frozenset[str] | None = None
    key: str | None = field(default=None, repr=False)


def entrance(address: str, names: Iterable[str] = (), key: str | None = None) -> Entrance:
    """Who may come in where a server listens.

    Args:
        address: that it listens on. On loopback only its own names are let in; elsewhere, unless
            names are given, any name, since nobody here knows what others call this machine.
        names: more names that a request may have as its host, as a proxy passes them on.
        key: see `Entrance`.

    Raises:
        ValueError: a name is none or has a port; the key is empty or no visible ASCII.
    """
    if key is not None and not _KEY.fullmatch(key):  # which is told to nobody
        raise ValueError(
            "api-key must be one or more visible ASCII characters without spaces, "
            f"got {len(key)} characters"
        )
    allowed = {name.lower() for name in names}
    for name in sorted(allowed):
        found = _HOST.fullmatch(name)
        if found is None or found[1] != name:
            raise ValueError(f"allow-host must be a host name without a port, got {name!r}")
    if _is_loopback(address):
        own = f"[{address}]" if ":" in address else address
        return Entrance(_LOOPBACK | {own.lower()} | allowed, key)
    return Entrance(_LOOPBACK | allowed if allowed else None, key)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


class Guard:
    """Sends away who may not come in, before anything of a request is read.

    Args:
        app: what answers the others.
        entrance: who may come in.
    """

    def __init__(self, app: ASGIApp, entrance: Entrance) -> None:
        self._app, self._entrance = app, entrance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on or refuses, as ASGI asks for."""
        error = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if error is None:
            await self._app(scope, receive, send)
            return
        answer = JSONResponse(error.body(), error.status, headers=error.headers)
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers, allowed = Headers(scope=scope), self._entrance.hosts
        if allowed is not None:
            given = headers.getlist("host")
            found = _HOST.fullmatch(given[0]) if len(given) == 1 else None
            if found is None or found[1].lower() not in allowed:
                told = f"{', '.join(given)[:80]!a}" if given else "none"
                return ApiError(
                    403,
                    f"Host must be one of {', '.join(sorted(allowed))}, got {told}; "
                    "the option --allow-host adds a name",
                    code="host_not_allowed",
                )
        if self._entrance.key is None or scope["path"].rstrip("/") in OPEN:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        wanted = self._entrance.key.encode()
        known = secrets.compare_digest(key.strip().encode("utf-8", "surrogateescape"), wanted)
        if known and scheme.lower() == "bearer":
            return None
        told = "a wrong key" if key else "no key"
        return ApiError(
            401,
            f"Authorization must be Bearer and the key of this service, got {told}",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
