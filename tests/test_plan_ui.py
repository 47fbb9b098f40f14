"""The page of `qianyi plan --ui`, in a real browser that can reach this machine alone."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
from browser import OVERLAPS, chromium, sync_api

from qianyi.cli.plan_ui_page import answer_html
from qianyi.config.load import load
from qianyi.errors import ConfigError, ResourceError
from qianyi.plan.plan import Question, answer

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from qianyi.cli import plan_ui


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server, as it prints it, with what the command line says. Ctrl-C ends it at once, in the midst of a search, without a word."""
    command = [sys.executable, "-m", "qianyi", "plan", "gpt2-124m", "--cluster", "a100:1x8", "--ui", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    url = process.stdout.readline().strip()
    yield url
    long = HTTPConnection("127.0.0.1", port_of(url))
    long.request("GET", "/answer?recipe=llama3-405b&chip=h100&deadline=1d")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=4)
    long.close()
    assert (process.returncode, said) == (0, "")


def port_of(url: str) -> int:
    return int(re.findall(r":(\d+)/", url)[0])


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with chromium() as found:
        yield found


def open_page(browser: "sync_api.Browser", url: str, locale: str) -> tuple["sync_api.Page", list[str]]:
    """A page, and a list in which complaints of the browser and requests to anywhere else are kept."""
    page = browser.new_context(locale=locale, accept_downloads=True).new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda r: None if r.url.startswith(("http://127.0.0.1:", "data:")) else wrong.append(r.url))
    page.goto(url)
    return page, wrong


def wait(page: "sync_api.Page") -> None:
    """Until an answer has come to what was just entered."""
    page.wait_for_selector("#answer[aria-busy]")
    page.wait_for_selector("#answer:not([aria-busy])")


def figures(page: "sync_api.Page") -> dict[str, str]:
    return dict(zip(page.locator(".figures dt").all_inner_texts(), page.locator(".figures dd").all_inner_texts(), strict=True))


def test_the_answer_follows_model_and_cluster(address: str, browser: "sync_api.Browser") -> None:
    page, wrong = open_page(browser, address, "en-US")
    plan = answer(Question(recipe="gpt2-124m", cluster="a100:1x8"))
    first = figures(page)
    assert (first["days"], first["a100 chips"]) == (f"{plan.campaign.wall_days:,.1f}", "8")
    assert page.inner_text("#layout") == plan.config.layout.words.replace(" x ", " × ")
    assert page.locator("#choices tr").count() == 1 + len(plan.found.choices)
    assert page.evaluate(OVERLAPS) == []

    page.select_option("[name=recipe]", "bert-large")
    wait(page)
    assert "bert-large" in page.inner_text(".answer h2")
    second = figures(page)
    assert second["days"] != first["days"]

    page.select_option("[name=chip]", "tpu-v5p")
    assert page.input_value("[name=shape]") == "2x2x2"
    wait(page)
    third = figures(page)
    assert third["tpu-v5p chips"] == "8"
    assert third["days"] != second["days"]

    page.select_option("[name=recipe]", "")
    page.fill("[name=params]", "1b")
    page.fill("[name=tokens]", "20b")
    wait(page)
    assert re.search(r"^(0\.9\d|1\.0\d)B parameters|^9\d\d\.\dM parameters", page.inner_text(".answer h2"))
    assert "params=1b" in page.url
    page.reload()
    assert figures(page)["tpu-v5p chips"] == "8"
    assert page.input_value("[name=params]") == "1b"
    assert wrong == []


def test_the_language_is_the_browsers_until_it_is_switched(address: str, browser: "sync_api.Browser") -> None:
    page, wrong = open_page(browser, address, "zh-CN")
    days = figures(page)["天"]
    assert page.inner_text("h1") == "训练规划"
    assert "每块芯片的显存" in page.inner_text(".panels")
    assert page.evaluate(OVERLAPS) == []
    page.fill("[name=deadline]", "9999d")
    wait(page)
    page.click("#lang")
    assert page.inner_text("h1") == "A plan for a training run"
    assert page.input_value("[name=deadline]") == "9999d"
    assert figures(page)["days"] == days
    page.click("#lang")
    assert page.inner_text("h1") == "训练规划"
    assert wrong == []


def test_what_cannot_be_is_said_in_both_languages(address: str, browser: "sync_api.Browser") -> None:
    page, wrong = open_page(browser, address, "en-US")
    page.select_option("[name=recipe]", "gpt3-175b")
    page.fill("[name=shape]", "1x8")
    wait(page)
    assert "nothing fits: the smallest layout needs" in page.inner_text("[role=alert]")
    assert page.locator(".figures").count() == 0
    page.click("#lang")
    assert "放不下" in page.inner_text("[role=alert]")
    for field, value, message in (
        ("shape", "4x9", "至多 8 块芯片"),
        ("shape", "", "请写明数量"),
        ("price", "cheap", "价格写作"),
    ):
        page.fill(f"[name={field}]", value)
        wait(page)
        assert message in page.inner_text("[role=alert]")
    assert wrong == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("shape=many", "写法不对"),
        ("shape=4x8&deadline=soon", "期限写作 `soon` 不对"),
        ("shape=4x8&deadline=1h", "期限是 0.0 天"),
        ("shape=4x8&budget=10", "预算是 $10"),
        ("shape=7x7", "芯片"),
        ("shape=4x8&tokens=few", "词元数写作"),
        ("shape=4x8&precision=fp8", "没有 fp8 单元"),
    ],
)
def test_every_message_has_chinese_words(fields: str, message: str) -> None:
    said = answer_html({"recipe": "bert-large", "chip": "a100"} | dict(field.split("=") for field in fields.split("&")), "zh")
    assert message in said
    assert not re.search("[a-z]{4,} [a-z]{4,}", re.sub("<[^>]*>", "", said))


def test_the_plan_is_a_recipe_to_take_away(address: str, browser: "sync_api.Browser", tmp_path) -> None:
    page, wrong = open_page(browser, address, "en-US")
    with page.expect_download() as download:
        page.click("a[href^='plan.yaml']")
    path = tmp_path / "plan.yaml"
    download.value.save_as(path)
    assert path.read_text() == page.inner_text("#yaml") + ("" if page.inner_text("#yaml").endswith("\n") else "\n")
    assert load(str(path)).config.layout.words.replace(" x ", " × ") == page.inner_text("#layout")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("[data-copy]")
    page.wait_for_selector("[data-copy]:has-text('copied')")
    assert page.evaluate("navigator.clipboard.readText()") == path.read_text()
    with page.expect_download() as download:
        page.click("a[href^='plan.svg']")
    download.value.save_as(tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")
    assert wrong == []


def test_fields_of_the_page_name_no_files_and_other_names_get_no_answer(address: str) -> None:
    def get(path: str, host: str = "127.0.0.1") -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port_of(address), timeout=10)
        connection.request("GET", path, headers={"Host": host})
        reply = connection.getresponse()
        body = reply.read().decode()
        connection.close()
        return reply.status, body

    assert "gpt3-175b (174.6B parameters) · h100:128x8" in get("/")[1]
    assert "unknown recipe `/etc/passwd`" in get("/answer?recipe=/etc/passwd&chip=h100&shape=1x8")[1]
    assert "expected HOSTSxCHIPS" in get("/answer?recipe=gpt2-124m&chip=h100&shape=a.yaml")[1]
    assert "unknown chip `h&lt;b&gt;`" in get("/answer?recipe=gpt2-124m&chip=h<b>".replace("<", "%3C").replace(">", "%3E"))[1]
    assert get("/", host="elsewhere.example")[0] == 400


def test_a_taken_port_and_options_that_the_page_has_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port}: address already in use; choose another with --port"):
            plan_ui.run(None, None, {}, [], port)
    with pytest.raises(ConfigError, match="no field for --json"):
        plan_ui.run(None, None, {}, ["--json"], 0)
    with pytest.raises(ConfigError, match="did you mean `gpt3-175b`"):
        plan_ui.run("gpt3-157b", None, {}, [], 0)


def test_without_the_extra_the_message_says_what_to_install() -> None:
    program = "import sys; sys.modules['uvicorn'] = None; sys.argv = ['qianyi', 'plan', '--ui']; from qianyi.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stderr) == (1, "error: plan --ui needs the package `uvicorn`: pip install 'qianyi[ui]'\n")
