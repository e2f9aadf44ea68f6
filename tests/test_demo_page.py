"""The page in a real browser: headless Chromium against the real command, with the shipped teacher."""

import base64
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import slow
from tests.demo_case import LONG, PAIR, make_project

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LACKING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(LACKING) or CHROMIUM is None,
    reason=f"the page's tests need the extras demo and test and a Chromium, and these are missing: "
    f"{', '.join([*LACKING, *([] if CHROMIUM else ['chromium'])])}",
)
MODEL = "models:/glance-scenes@candidate"
PATIENCE_MS = 120_000  # for a machine that does other work too


class Server:
    """The command in a process of its own, and where it must not write."""

    def __init__(self, folder: Path, database: Path):
        self.project = make_project(folder / "project", database)
        self.home, self.scratch = folder / "home", folder / "tmp"
        self.home.mkdir()
        self.scratch.mkdir()
        self.before = self.files()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "DVC", "XDG"))}
        self.log = folder / "log"
        with open(self.log, "wb") as log, open(folder / "errors", "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "demo", "--no-browser", "--port", str(self.port)],
                cwd=self.project,
                env=kept | {"HOME": str(self.home), "TMPDIR": str(self.scratch), "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=log,
                stderr=errors,
            )
        deadline = time.monotonic() + 240
        while self.address not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the page did not start:\n{(folder / 'errors').read_text()}")
            time.sleep(0.1)

    def files(self) -> set[Path]:
        """Every file of project and home, except what the registry keeps."""
        found = (path for place in (self.project, self.home) for path in place.rglob("*") if path.is_file())
        return {path for path in found if ".glance" not in path.parts}


@pytest.fixture(scope="module")
@slow
def server(tmp_path_factory, database):
    made = Server(tmp_path_factory.mktemp("demo"), database)
    yield made
    if made.process.poll() is None:
        made.process.kill()


@pytest.fixture(scope="module")
@slow
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A visitor's page, with all that the browser asked for and complained about."""

    def __init__(self, browser, server: Server):
        self.page = browser.new_context(viewport={"width": 1200, "height": 1000}).new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        own = (server.address, server.address.replace("http", "ws"), "data:", "blob:")
        self.page.on(
            "request", lambda request: None if request.url.startswith(own) else self.foreign.append(request.url)
        )
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(server.address)
        self.page.wait_for_selector("#draw")

    def ask(self, prompt: str, seed: int) -> None:
        self.page.fill("#prompt textarea", prompt)
        self.page.fill("#seed input", str(seed))
        self.page.click("#draw")

    def drawn(self, prompt: str) -> dict[str, bytes]:
        """The pictures of a prompt, once both are done."""
        for title in ("Teacher", "Student"):
            self.page.wait_for_selector(f'.g-{title.lower()}.g-done img[alt="{title}: {prompt}"]')
        return {who: self.picture(who) for who in ("teacher", "student")}

    def picture(self, who: str) -> bytes:
        """The bytes of a picture."""
        return base64.b64decode(self.page.get_attribute(f".g-{who} .g-frame img", "src").partition(",")[2])

    def changed(self, who: str, before: bytes) -> bytes:
        """The bytes of a picture, once they are other than `before`."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while (now := self.picture(who)) == before:
            assert time.monotonic() < deadline, f"the picture of the {who} did not change"
            self.page.wait_for_timeout(50)
        return now

    def refusal(self, words: str) -> None:
        """Waits for a sentence with these words."""
        self.page.wait_for_function(
            "words => document.querySelector('#refusal .g-error')?.innerText.includes(words)", arg=words
        )

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def slide(self, level: int) -> None:
        """Moves the slider of the noise levels as the keyboard does."""
        self.page.locator("#level input[type=range]").focus()
        self.page.keyboard.press("End")
        for _ in range(8 - level):
            self.page.keyboard.press("ArrowLeft")


@pytest.fixture
def visit(browser, server):
    """A visitor; the page must not have asked another host, nor complained."""
    made = Visit(browser, server)
    yield made
    assert made.foreign == [] and made.complaints == []
    made.page.context.close()


def test_the_student_is_done_before_the_teacher_and_both_clocks_run(visit):
    visit.page.evaluate("""() => {
        window.seen = [];
        new MutationObserver(() => window.seen.push(['teacher', 'student'].map(who => {
            const panel = document.querySelector(`.g-${who}`);
            return [panel.classList.contains('g-done'), panel.querySelector('.g-forwards').innerText];
        }))).observe(document.querySelector('#stage'), {childList: true, subtree: true});
    }""")
    visit.ask("a red star on black", 3)
    pictures = visit.drawn("a red star on black")
    seen = visit.page.evaluate("window.seen")
    first = next(now for now in seen if now[1][0])
    assert not first[0][0] and first[1][1] == "8 / 8 forwards"
    counts = [int(now[0][1].split(" / ")[0]) for now in seen if now[1][0]]
    assert counts == sorted(counts) and counts[-1] == 100 and len(set(counts)) > 2
    assert "times as fast" in visit.page.inner_text(".g-verdict")
    assert pictures["teacher"] != pictures["student"]


def test_the_slider_shows_the_states_on_the_way_and_the_handoff(visit):
    visit.ask("a blue ring on white", 5)
    before = visit.drawn("a blue ring on white")
    assert visit.page.locator(".g-handoff").count() == 1
    visit.slide(2)
    estimate = visit.changed("student", before["student"])
    visit.page.wait_for_selector(".g-student .g-tag:has-text('estimate at sigma 0.921')")
    visit.page.get_by_label("states x").check()
    visit.changed("student", estimate)
    visit.page.wait_for_selector(".g-teacher .g-tag:has-text('state at sigma 0.921')")
    visit.slide(8)
    visit.page.wait_for_selector(".g-student:not(:has(.g-tag))")
    assert visit.picture("student") == before["student"]


def test_the_switch_changes_the_student_alone(visit):
    visit.ask("two green hearts", 6)
    before = visit.drawn("two green hearts")
    for way, words in (("swapped", "The fast adapter acts in the early steps"), ("slow only", "The slow adapter acts")):
        visit.page.get_by_label(way).check()
        visit.page.wait_for_selector(f".g-verdict:has-text('{words}')")
        assert visit.picture("student") != before["student"] and visit.picture("teacher") == before["teacher"]
    visit.page.get_by_label("pair").first.check()
    visit.page.wait_for_function("!document.querySelector('.g-verdict').innerText.includes('adapter')")
    visit.drawn("two green hearts")
    assert visit.picture("student") == before["student"]


def test_two_visitors_at_once_get_their_own_pictures(visit, browser, server):
    other = Visit(browser, server)
    visit.ask("a pink cross", 11)
    other.ask("three cyan circles on grey", 12)
    mine, theirs = visit.drawn("a pink cross"), other.drawn("three cyan circles on grey")
    assert mine["student"] != theirs["student"] and mine["teacher"] != theirs["teacher"]
    other.ask("a pink cross", 11)
    assert other.drawn("a pink cross") == mine
    assert other.foreign == [] and other.complaints == []
    other.page.context.close()


def test_a_stop_in_the_middle_and_a_version_from_the_registry(visit):
    visit.tab("Pair")
    assert "96.4 % [94.1, 98.5]" not in visit.page.inner_text("#facts") or "registry" in visit.page.inner_text("#facts")
    visit.page.locator("#bundle input").fill(LONG)
    visit.page.keyboard.press("Enter")
    visit.page.click("#use")
    visit.page.wait_for_selector("h1:has-text('8 forwards instead of 2000')")
    visit.ask("an orange square", 4)
    visit.page.wait_for_selector(".g-teacher.g-drawing")
    visit.page.click("#stop")
    visit.page.wait_for_selector(".g-verdict:has-text('Stopped.')")
    assert visit.page.locator(".g-student.g-done").count() == 1 and visit.page.locator(".g-teacher.g-done").count() == 0
    visit.page.locator("#bundle input").click()
    visit.page.get_by_role("option", name=re.compile("candidate")).click()
    visit.page.click("#use")
    visit.page.wait_for_selector("h1:has-text('8 forwards instead of 100')")
    assert MODEL in visit.page.inner_text(".g-head")
    assert "96.4 %" in visit.page.inner_text("#facts")
    visit.ask("an orange square", 4)
    visit.drawn("an orange square")


def test_bad_input_is_one_sentence_and_the_page_goes_on(visit, server):
    visit.ask("", 1)
    visit.refusal("the prompt must hold a visible character, got none.")
    visit.ask("a" * 2001, 1)
    visit.refusal("the prompt must have at most 2000 characters, got 2001.")
    visit.page.fill("#prompt textarea", "a star")
    for seed in ("", "-1", "1.5"):
        visit.page.fill("#seed input", seed)
        visit.page.click("#draw")
        visit.refusal(f"the seed must be a whole number from 0 to 9007199254740991, got {seed or 'none'}.")
    visit.ask("a yellow diamond " * 117, 1)
    visit.drawn(("a yellow diamond " * 117).strip())
    broken = server.project / ".glance/broken"
    shutil.copytree(server.project / PAIR, broken, dirs_exist_ok=True)
    (broken / "slow.safetensors").write_bytes(b"no weights")
    visit.tab("Pair")
    for name, words in (
        (".glance/broken", "slow.safetensors is no safetensors file"),
        ("nowhere", "nowhere is no bundle: glance.json is missing."),
        ("models:/glance-scenes@champion", "champion"),
    ):
        visit.page.locator("#bundle input").fill(name)
        visit.page.keyboard.press("Enter")
        visit.page.click("#use")
        visit.refusal(words)
    assert "8 forwards instead of 100" in visit.page.inner_text("h1")


def test_the_gallery_shows_both_rows(visit):
    visit.page.fill("#prompt textarea", "a purple triangle")
    visit.tab("Seeds")
    visit.page.fill("#count input[type=number]", "4")
    visit.page.keyboard.press("Tab")
    visit.page.click("#draw-seeds")
    visit.page.wait_for_function("document.querySelectorAll('.g-row .g-seed img').length == 8")
    images = visit.page.eval_on_selector_all(".g-row .g-seed img", "found => found.map(one => one.src)")
    assert len(set(images)) == 8


def test_the_page_forbids_other_hosts_and_answers_on_this_machine_alone(server):
    with urllib.request.urlopen(server.address) as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    bound = {line.split()[1] for line in listening if line.split()[3] == "0A"}
    assert {place for place in bound if place.endswith(f":{server.port:04X}")} == {f"0100007F:{server.port:04X}"}


def test_nothing_is_left_and_ctrl_c_ends_the_page(server):
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=90) == 0
    assert server.files() == server.before
    assert list(server.scratch.iterdir()) == []
    assert server.log.read_text().splitlines() == [server.address]
