"""Serves the page on this machine alone, and lets the browser ask no other."""

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Event

import gradio as gr
import matplotlib.pyplot  # noqa: F401 - Gradio imports it at the first click, which would take seconds
from starlette.middleware import Middleware

HOST = "127.0.0.1"
CSS = Path(__file__).with_name("page.css")
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self'; "
    "frame-ancestors 'none'; form-action 'self'"
)
"""The browser's own rule against requests to other hosts."""

Scope = dict
Messages = Callable[..., Awaitable]


class OwnHostOnly:
    """Adds the policy to every answer."""

    def __init__(self, app: Callable[[Scope, Messages, Messages], Awaitable]):
        self._app = app

    async def __call__(self, scope: Scope, receive: Messages, send: Messages) -> None:
        async def sending(message: dict) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)


def check_port(port: int) -> None:
    """Raises ValueError if another program has the port."""
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"--port must be a free port of {HOST}, got {port}: {error.strerror}") from None


def serve(blocks: gr.Blocks, port: int, *, browser: bool, ready: Callable[[str], None]) -> None:
    """Serves until Ctrl-C.

    Args:
        blocks: The page.
        port: Of the address.
        browser: Open the page in the default browser.
        ready: Is told the address, once the page answers.

    Raises:
        OSError: The port is taken.
    """
    system = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=system, font_mono=["ui-monospace", "monospace"]
    )
    blocks.queue(default_concurrency_limit=4)
    _, address, _ = blocks.launch(
        server_name=HOST,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        theme=theme,
        css_paths=[CSS],
        app_kwargs={"middleware": [Middleware(OwnHostOnly)]},
    )
    try:
        ready(address)
        Event().wait()
    except KeyboardInterrupt:  # the only way to end the page, so not a failure
        pass
    finally:
        blocks.close(verbose=False)
