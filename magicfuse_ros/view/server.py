"""Serves the page, and each viewer's own stream of shots over one WebSocket.

A viewer that is slow gets fewer shots and never old ones: the next one is sent when the last but
one has been shown, and it is the newest there is. Nothing waits for a viewer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from aiohttp import WSMsgType, web

from magicfuse_ros.view.shot import PICTURES, Shot, Show

IN_FLIGHT = 2
"""Shots on their way to a viewer, so that a slow connection is used all the time."""
STATE_S = 0.25
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; connect-src 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
_ORDERS = ("pause", "step", "seek")


class ServeError(Exception):
    """The page cannot be served; the message says what to do."""


@dataclass(eq=False)
class _Viewer:
    socket: web.WebSocketResponse
    wanted: frozenset[str] = frozenset()
    in_flight: int = 0
    shot: int = 0
    state: str = ""
    news: asyncio.Event = field(default_factory=asyncio.Event)


class PageServer:
    """Serves a show, which it does not close; port 0 takes a free one."""

    def __init__(self, show: Show, host: str, port: int) -> None:
        self._show, self._host, self._port = show, host, port
        self._viewers: set[_Viewer] = set()
        self._shot: Shot | None = None
        self._state = ""
        self._page = files("magicfuse_ros.view").joinpath("index.html").read_text(encoding="utf-8")
        # One thread: whoever comes second finds the pictures encoded.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="view_encoder")

    def run(self, stop: threading.Event, ready: Callable[[str], None]) -> None:
        """Serve; `ready` is called with the page's address as soon as it can be opened.

        Raises ServeError if the address cannot be listened on.
        """
        try:
            asyncio.run(self._serve(stop, ready))
        finally:
            self._encoder.shutdown()

    async def _serve(self, stop: threading.Event, ready: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()

        def on_shot(shot: Shot) -> None:
            with suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(self._on_shot, shot)

        application = web.Application(middlewares=[self._only_own_pages])
        application.add_routes([web.get("/", self._get_page), web.get("/stream", self._stream)])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, self._host, self._port).start()
            except OSError as error:
                raise ServeError(
                    f"the page cannot be served at {self._host}:{self._port}: "
                    f"{error.strerror or error}; give another --port (0 takes a free one) or --host"
                ) from error
            self._show.on_shot = on_shot
            host, port = runner.addresses[0][:2]
            ready(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")
            while not stop.is_set() and not self._show.failure:
                self._tell()
                await asyncio.sleep(STATE_S)
            self._tell()
            await asyncio.sleep(0.1 if self._show.failure else 0.0)  # so that the page shows it
        finally:
            for viewer in tuple(self._viewers):
                await viewer.socket.close()
            await runner.cleanup()

    @web.middleware
    async def _only_own_pages(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse pages of other sites, which a browser lets open WebSockets to any address."""
        origin = request.headers.get("Origin")
        name = request.url.host or ""
        if origin is not None and origin.rpartition("://")[2] != request.host:
            raise web.HTTPForbidden(text=f"a page of {origin} may not look here")
        if _is_loopback(self._host) and not _is_loopback(name):
            raise web.HTTPForbidden(text=f"{name} is not this machine's own address")
        return await handler(request)

    async def _get_page(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html", headers=_HEADERS)

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=10.0, max_msg_size=4096, compress=False)
        await socket.prepare(request)
        viewer = _Viewer(socket)
        self._viewers.add(viewer)
        writer = asyncio.create_task(self._write(viewer))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await self._obey(viewer, message.data)
        finally:
            writer.cancel()
            self._viewers.discard(viewer)
            self._want()
            with suppress(asyncio.CancelledError, ConnectionError):
                await writer
        return socket

    async def _write(self, viewer: _Viewer) -> None:
        loop = asyncio.get_running_loop()
        while not viewer.socket.closed:
            if viewer.state != self._state:
                viewer.state = self._state
                await viewer.socket.send_str(self._state)
            shot = self._shot
            new = shot is not None and shot.number != viewer.shot and viewer.wanted
            if shot is not None and new and viewer.in_flight < IN_FLIGHT:
                viewer.shot = shot.number
                viewer.in_flight += 1
                data = await loop.run_in_executor(self._encoder, shot.pack, viewer.wanted)
                await viewer.socket.send_bytes(data)
            else:
                await viewer.news.wait()
                viewer.news.clear()

    async def _obey(self, viewer: _Viewer, text: str) -> None:
        """Do what the page asks for: a JSON object with one key."""
        try:
            ((order, value),) = json.loads(text).items()
            if order == "shown":
                viewer.in_flight -= 1
                viewer.news.set()
                return
            if order == "want":
                viewer.wanted, viewer.shot = frozenset(value) & frozenset(PICTURES), 0
                self._want()
            elif order == "tune":
                tau, temporal = value
                self._show.tune(None if tau is None else float(tau), float(temporal))
            elif order in _ORDERS:
                if not math.isfinite(value):
                    raise ValueError(f"{order} is {value!r}; accepted: a number")  # noqa: TRY301
                self._show.play(order, float(value))
            else:
                raise ValueError(f"{order!r} is none of: shown, want, tune, {', '.join(_ORDERS)}")  # noqa: TRY301
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            await viewer.socket.send_str(json.dumps({"refused": str(error)}))
        self._tell()

    def _want(self) -> None:
        self._show.want(frozenset().union(*(viewer.wanted for viewer in self._viewers)))

    def _on_shot(self, shot: Shot) -> None:
        self._shot = shot
        self._wake()

    def _tell(self) -> None:
        state: dict[str, Any] = self._show.state() | {"viewers": len(self._viewers)}
        self._state = json.dumps(state)
        self._wake()

    def _wake(self) -> None:
        for viewer in self._viewers:
            viewer.news.set()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
