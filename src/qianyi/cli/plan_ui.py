"""`qianyi plan --ui`: a page on this machine that asks `qianyi.plan.plan.answer` and shows the answer."""

from collections.abc import Callable, Mapping
from html import escape
from typing import NoReturn, TypeVar
from urllib.parse import urlencode

from qianyi.cli.plan_ui_page import FIELDS, Form, answer_html, page_html, say_in, solve
from qianyi.config import recipes
from qianyi.config.explain import nearest
from qianyi.errors import ConfigError, QianyiError, ResourceError
from qianyi.plan.output import plan_yaml
from qianyi.plan.picture import picture
from qianyi.plan.plan import Plan

try:
    from anyio import to_thread
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route

    from qianyi.cli.serving import ONLY_HERE, serve
except ModuleNotFoundError as missing:
    raise ResourceError(f"plan --ui needs the package `{missing.name}`: pip install 'qianyi[ui]'") from None

PORT = 8421
Result = TypeVar("Result")
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
    serve_form(FIELDS | said if said else {}, PORT if port is None else port)


def serve_form(form: Form, port: int) -> NoReturn:
    """Serves the page, with these fields filled in, until Ctrl-C ends the program. Port 0: any that is free.

    Raises:
        ResourceError: the port is taken.
    """
    serve(make_app(), port, f"?{urlencode(form)}" if form else "")


def make_app() -> Starlette:
    """The page, its answer alone (for the page's script), and two files."""
    routes = [Route("/", _page), Route("/answer", _answer), Route("/plan.yaml", _yaml), Route("/plan.svg", _svg)]
    return Starlette(routes=routes, middleware=[ONLY_HERE], exception_handlers={Exception: _defect})


async def _page(request: Request) -> Response:
    return HTMLResponse(await _aside(lambda: page_html(_form(request), _language(request))), headers=HEADERS)


async def _answer(request: Request) -> Response:
    return HTMLResponse(await _aside(lambda: answer_html(_form(request), _language(request))), headers=HEADERS)


async def _yaml(request: Request) -> Response:
    return await _file(request, "plan.yaml", "application/yaml", plan_yaml)


async def _svg(request: Request) -> Response:
    say = say_in(_language(request))
    return await _file(request, "plan.svg", "image/svg+xml", lambda plan: picture(plan, say))


async def _file(request: Request, name: str, media_type: str, write: Callable[[Plan], str]) -> Response:
    try:
        plan, _ = await _aside(lambda: solve(_form(request)))
    except QianyiError as error:
        return PlainTextResponse(f"{error}\n", status_code=400)
    return Response(
        write(plan), media_type=media_type, headers=HEADERS | {"Content-Disposition": f'attachment; filename="{name}"'}
    )


def _defect(_: Request, error: Exception) -> Response:
    words = f"internal error: {type(error).__name__}: {error}; ask the same with `qianyi --debug plan` and report what it prints"
    return HTMLResponse(f'<p class="alert" role="alert">{escape(words)}</p>', status_code=500, headers=HEADERS)


async def _aside(work: Callable[[], Result]) -> Result:
    """In a thread, so that the next question need not wait for it."""
    return await to_thread.run_sync(work, abandon_on_cancel=True)


def _form(request: Request) -> dict[str, str]:
    """Fields of the address; the first visit has none."""
    asked = request.query_params
    begins = not any(name in asked for name in FIELDS)
    return {name: asked.get(name, first if begins else "") for name, first in FIELDS.items()}


def _language(request: Request) -> str:
    """As chosen, else the first of the browser's languages that there is."""
    wanted = [request.query_params.get("lang", ""), *request.headers.get("accept-language", "").split(",")]
    return next((word.strip()[:2].lower() for word in wanted if word.strip()[:2].lower() in {"en", "zh"}), "en")
