"""`qianyi plan --ui`: a page on this machine that asks `qianyi.plan.plan.answer` and shows the answer."""

import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import urlencode

from qianyi.cli.plan_ui_page import FIELDS, Form, answer_html, page_html, say_in, solve
from qianyi.config import recipes
from qianyi.config.explain import nearest
from qianyi.errors import ConfigError, QianyiError, ResourceError
from qianyi.plan.output import plan_yaml
from qianyi.plan.picture import picture
from qianyi.plan.plan import Plan

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as missing:
    raise ResourceError(f"plan --ui needs the package `{missing.name}`: pip install 'qianyi[ui]'") from None

HOST, PORT = "127.0.0.1", 8421
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Nothing may be loaded from elsewhere: the browser sees to it."""


def run(recipe: str | None, cluster: str | None, fields: Mapping[str, str | None], others: list[str], port: int | None) -> None:
    """Serves the page with what the command line says filled in.

    Raises:
        ConfigError: it says what the page has no field for.
        ResourceError: the port is taken.
    """
    if others:
        raise ConfigError(f"--ui: the page has no field for {', '.join(others)}; leave that out, or plan without --ui")
    if recipe is not None and recipe not in recipes.names():
        raise ConfigError(f"--ui: the page plans shipped recipes, `{recipe}` is none{nearest(recipe, recipes.names())}")
    said = {name: value for name, value in fields.items() if value}
    if recipe or "params" in said:
        said["recipe"] = recipe or ""
    if cluster:
        said["chip"], _, said["shape"] = cluster.partition(":")
    serve(FIELDS | said if said else {}, PORT if port is None else port)


def serve(form: Form, port: int) -> None:
    """Serves the page, with these fields filled in, until Ctrl-C. Port 0: any that is free.

    Raises:
        ResourceError: the port is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise ResourceError(f"port {port}: {(error.strerror or str(error)).lower()}; choose another with --port") from None
        listener.listen()
        query = f"?{urlencode(form)}" if form else ""
        print(f"http://{HOST}:{listener.getsockname()[1]}/{query}\nCtrl-C stops it.", flush=True)
        server = uvicorn.Server(uvicorn.Config(make_app(), log_level="error", timeout_graceful_shutdown=1))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def make_app() -> Starlette:
    """The page, its answer alone (for the page's script), and two files."""
    routes = [
        Route("/", lambda request: _html(page_html(_form(request), _language(request)))),
        Route("/answer", lambda request: _html(answer_html(_form(request), _language(request)))),
        Route("/plan.yaml", lambda request: _file(request, "plan.yaml", "application/yaml", plan_yaml)),
        Route("/plan.svg", lambda request: _file(request, "plan.svg", "image/svg+xml", lambda p: picture(p, _say(request)))),
    ]
    # A page elsewhere whose name is made to mean this machine gets no answer.
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])


def _html(page: str) -> Response:
    return HTMLResponse(page, headers=HEADERS)


def _file(request: Request, name: str, media_type: str, write: Callable[[Plan], str]) -> Response:
    try:
        plan, _ = solve(_form(request))
    except QianyiError as error:
        return PlainTextResponse(f"{error}\n", status_code=400)
    return Response(
        write(plan), media_type=media_type, headers=HEADERS | {"Content-Disposition": f'attachment; filename="{name}"'}
    )


def _form(request: Request) -> dict[str, str]:
    """Fields of the address; the first visit has none."""
    asked = request.query_params
    begins = not any(name in asked for name in FIELDS)
    return {name: asked.get(name, first if begins else "") for name, first in FIELDS.items()}


def _language(request: Request) -> str:
    """As chosen, else the first of the browser's languages that there is."""
    wanted = [request.query_params.get("lang", ""), *request.headers.get("accept-language", "").split(",")]
    return next((word.strip()[:2].lower() for word in wanted if word.strip()[:2].lower() in {"en", "zh"}), "en")


def _say(request: Request) -> Callable[[str], str]:
    return say_in(_language(request))
