"""The command `explore`, which shows a store in the browser."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from patchsae.flows.cli.options import StoreOption


def explore(
    store: StoreOption = "./store",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="N", help="Port.  [default: the first free one from 8765 on]"),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen at. Other machines can reach any but 127.0.0.1; a token in the URL lets in.",
        ),
    ] = "127.0.0.1",
    token: Annotated[
        bool, typer.Option("--token", help="Ask for a token on 127.0.0.1 too, if others use this machine.")
    ] = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address; open no browser.")
    ] = False,
) -> None:
    """Explore a store in the browser: its experiments, SAEs, latents, images and tables.

    It reads the store and changes nothing in it, also while a run writes to it: reload a page to see what is new.
    Ctrl-C ends it.

    Examples:

    - `patchsae explore`

    - `patchsae explore --store /data/store --port 9000 --no-browser`, then `ssh -L 9000:localhost:9000 MACHINE` from
      another machine
    """
    show(store, port, host, token, no_browser)


def show(
    store: str,
    port: int | None = None,
    host: str = "127.0.0.1",
    with_token: bool = False,
    no_browser: bool = False,
) -> None:
    """Serves a store until it is interrupted. Raises UserError if the port or the address cannot be used."""
    from patchsae.explorer.guard import Policy
    from patchsae.explorer.serve import PORT, listen, open_browser, serve
    from patchsae.flows.cli.screen import result, say

    listening = listen(host, port)
    policy = Policy.of(host, listening.port, with_token)
    url = listening.url(policy.token)
    if port is None and listening.port != PORT:
        say(f"Port {PORT} is in use, so this one has port {listening.port}.")

    def ready() -> None:
        result(f"The explorer of {store} is at {url}")
        say("Ctrl-C ends it.")
        if not no_browser:
            open_browser(url)

    with contextlib.suppress(KeyboardInterrupt):
        serve(store, listening, policy, ready)
    say("The explorer has ended.")
