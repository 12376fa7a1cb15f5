"""The chat page in a real browser, against the real server."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from support.serving import Server, cache_dir_of
from support.tiny_models import BABBLE, say, write_chain

pytestmark = pytest.mark.e2e

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PARIS = "The capital of France is Paris."
# In milliseconds; the machine may be busy with other tests.
expect.set_options(timeout=20_000)
KEY = "schlüssel-ключ-🔑"
MARKDOWN = """Look:

# Heading

- one
- two **bold** &amp; `x<y`

| a | b |
|---|--:|
| 1 | 2 |

> quoted

[link](https://example.com/page) and ~~gone~~

```python
if 1 < 2:
    print("<b>")
```
"""
HOSTILE = """Look: <script>document.title = "owned"</script> <b onclick="x">bold</b>

<img src="/page/x.png" onerror="document.title = 'owned'">

<iframe src="https://example.com/frame"></iframe>

[script](javascript:document.title='owned') [data](data:text/html,owned) [file](file:///etc/passwd)
[coded](&#106;avascript:document.title='owned') [here](/health) <javascript:owned>

![secret](https://example.com/pixel.png) and ![two][ref]

[ref]: https://example.com/other.png "quote\\" onload=owned"

```html
</code></pre><script>document.title = "owned"</script>
```
"""
HOSTILE_NAME = "<img src=x onerror=alert(1)>"


class Chat:
    """The page as its user sees it; `troubles` lists errors, requests to other hosts and other unwanted events."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.troubles: list[str] = []
        self._watch(url)
        self.message = page.get_by_label("Message", exact=True)
        self.answers = page.locator("article.answer")
        self.questions = page.locator("article.question .text")
        self.conversations = page.locator("#conversations li")
        self.notice = page.locator("#notice")
        page.goto(url)

    def ask(self, text: str) -> None:
        """Type a message and send it."""
        self.message.fill(text)
        self.message.press("Enter")

    def use(self, model: str) -> None:
        """Choose a model."""
        self.page.get_by_label("Model").select_option(model)

    def set(self, **fields: str) -> None:
        """Change settings, named by their labels."""
        self.page.get_by_role("button", name="Settings").click()
        for label, value in fields.items():
            self.page.get_by_label(label.replace("_", " ")).fill(value)
        self.page.get_by_role("button", name="Done").click()

    def press(self, name: str) -> None:
        """Press a button."""
        self.page.get_by_role("button", name=name).click()

    def new(self) -> None:
        """Begin a new conversation."""
        self.page.get_by_role("link", name="New conversation").click()

    def expect_answer(self, text: str | re.Pattern[str]) -> None:
        """Wait until the last answer is complete and has this text."""
        expect(self.answers.last).to_have_attribute("data-state", "done")
        expect(self.answers.last.locator("> .prose")).to_have_text(text)

    def expect_growth(self) -> None:
        """Wait until the last answer has text and grows."""
        prose = self.answers.last.locator("> .prose")
        expect(prose).to_have_text(re.compile("."))
        expect(prose).to_have_text(re.compile(f".{{{len(prose.inner_text()) + 20}}}"))

    def _watch(self, url: str) -> None:
        def on_console(message: ConsoleMessage) -> None:
            # The browser logs every status from 400 on, also an expected one.
            if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
                self.troubles.append(message.text)

        def on_request(sent: Request) -> None:
            if not sent.url.startswith(f"{url}/"):
                self.troubles.append(f"asked {sent.url}")

        self.page.on("console", on_console)
        self.page.on("request", on_request)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(f"said {dialog.message}"))


Open = Callable[..., Chat]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield a real Chromium, without a window."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Yield a function that opens the page of a server in a new browser profile; fail if a page had troubles."""
    chats: list[Chat] = []

    def open_page(server: Server, **options: Any) -> Chat:
        context = browser.new_context(reduced_motion="reduce", **options)
        context.set_default_timeout(20_000)
        chats.append(Chat(context.new_page(), server.url))
        return chats[-1]

    yield open_page
    for chat in chats:
        chat.page.context.close()
    assert [trouble for chat in chats for trouble in chat.troubles] == []


def add_chain(home: Path, name: str, follows: Mapping[str, Any], context: int = 512) -> None:
    """Put a chain model into the cache of a server with this home."""
    folder = write_chain(home / name.replace("/", "-"), follows, context=context)
    cache_dir_of(home).add(name, {path.name: path.read_bytes() for path in folder.iterdir()})


def says(text: str) -> dict[str, Any]:
    """Return the chain that writes this text as one token."""
    return dict(say(text.replace(" ", "Ġ").replace("\n", "Ċ")))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server with the demo model and with models that write what the tests need."""
    home = tmp_path_factory.mktemp("home")
    add_chain(home, "test/babble", BABBLE, context=1 << 20)
    add_chain(home, "test/deep", says("Look:\n\n" + ">" * 50_000))
    add_chain(home, "test/short", BABBLE, context=64)
    add_chain(home, "test/markdown", says(MARKDOWN))
    with Server("--model", "demo", home=home) as server:
        yield server


@pytest.fixture
def chat(visit: Open, server: Server) -> Chat:
    """Return the page of a new visitor, with greedy sampling."""
    chat = visit(server)
    chat.use("demo")
    chat.set(Temperature="0")
    return chat


def wait_until_idle(server: Server) -> None:
    """Wait until the server generates nothing."""
    deadline = time.monotonic() + 10
    while httpx.get(f"{server.url}/health").json()["active"]:
        assert time.monotonic() < deadline, "the server still generates"
        time.sleep(0.02)


def test_the_answer_is_shown_with_its_token_counts(chat: Chat) -> None:
    chat.ask("What is the capital of France?")
    chat.expect_answer(PARIS)
    figures = re.compile(r"^\d+ tokens · ([\d.]+ tokens/s · )?prompt \d+")
    expect(chat.answers.last.locator(".figures")).to_have_text(figures)
    expect(chat.page).to_have_title("What is the capital of France? · mlxk2")


def test_the_model_list_shows_context_lengths(chat: Chat) -> None:
    models = ["demo · 4k", "test/babble · 1024k", "test/deep · 512", "test/markdown · 512", "test/short · 64"]
    options = chat.page.get_by_label("Model").locator("option")
    expect(options).to_have_text([f"{model} context" for model in models])
    expect(chat.page.get_by_label("Model")).to_have_value("demo")


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_button_and_escape_stop_a_growing_answer(chat: Chat, server: Server, by: str) -> None:
    chat.use("test/babble")
    chat.ask("Go")
    chat.expect_growth()
    if by == "button":
        chat.press("Stop")
    else:
        chat.page.keyboard.press("Escape")
    expect(chat.answers.last.locator(".note")).to_have_text("Stopped.")
    expect(chat.answers.last.locator("> .prose")).to_have_text(re.compile(r"\w{20}"))
    expect(chat.page.get_by_role("button", name="Send")).to_be_visible()
    wait_until_idle(server)


def test_a_reload_keeps_the_partial_answer(chat: Chat, server: Server) -> None:
    chat.ask("What is the capital of France?")
    chat.expect_answer(PARIS)
    chat.use("test/babble")
    chat.ask("Go")
    chat.expect_growth()
    chat.page.reload()
    expect(chat.questions).to_have_text(["What is the capital of France?", "Go"])
    expect(chat.answers.first.locator("> .prose")).to_have_text(PARIS)
    expect(chat.answers.last.locator("> .prose")).to_have_text(re.compile(r"\w{20}"))
    expect(chat.answers.last.locator(".note")).to_have_text("Unfinished: the page was closed.")
    expect(chat.page.get_by_label("Model")).to_have_value("test/babble")
    wait_until_idle(server)


def test_conversations_can_be_listed_switched_and_deleted(chat: Chat) -> None:
    chat.ask("Hello")
    chat.expect_answer("Hello! How can I help you?")
    chat.new()
    expect(chat.questions).to_have_count(0)
    chat.ask("What is the capital of France?")
    chat.expect_answer(PARIS)
    expect(chat.conversations).to_have_text([re.compile("capital"), re.compile("Hello")])
    chat.page.get_by_role("link", name="Hello").click()
    expect(chat.questions).to_have_text(["Hello"])
    chat.conversations.last.hover()
    chat.press("Delete “Hello”")
    expect(chat.questions).to_have_count(0)
    expect(chat.conversations).to_have_count(1)
    chat.press("Undo")
    expect(chat.questions).to_have_text(["Hello"])
    expect(chat.conversations).to_have_count(2)


def test_two_conversations_are_answered_at_once(chat: Chat, server: Server) -> None:
    chat.use("test/babble")
    chat.ask("One")
    chat.expect_growth()
    chat.new()
    chat.ask("Two")
    chat.expect_growth()
    assert httpx.get(f"{server.url}/health").json()["active"] == 2
    chat.page.get_by_role("link", name="One").click()
    chat.expect_growth()
    expect(chat.questions).to_have_text(["One"])
    chat.conversations.first.hover()
    chat.press("Delete “Two”")
    chat.press("Stop")
    wait_until_idle(server)
    expect(chat.conversations).to_have_count(1)


def test_another_tab_sees_the_conversation(chat: Chat, server: Server) -> None:
    other = Chat(chat.page.context.new_page(), server.url)
    chat.ask("Hello")
    chat.expect_answer("Hello! How can I help you?")
    expect(other.conversations).to_have_text([re.compile("Hello")])
    assert other.troubles == []


def test_the_last_question_can_be_edited_and_asked_again(chat: Chat) -> None:
    chat.ask("Hello")
    chat.expect_answer("Hello! How can I help you?")
    chat.ask("What is 3 + 4?")
    chat.expect_answer("3 + 4 = 7.")
    chat.press("Regenerate")
    chat.expect_answer("3 + 4 = 7.")
    chat.press("Edit")
    expect(chat.message).to_have_value("What is 3 + 4?")
    chat.page.keyboard.press("Escape")
    expect(chat.message).to_have_value("")
    chat.press("Edit")
    chat.ask("What is 2 + 4?")
    chat.expect_answer("2 + 4 = 6.")
    expect(chat.questions).to_have_text(["Hello", "What is 2 + 4?"])


def test_the_token_limit_setting_cuts_the_answer(chat: Chat) -> None:
    chat.use("test/babble")
    chat.set(Most_tokens_of_an_answer="400")
    chat.ask("Go")
    expect(chat.answers.last.locator(".note")).to_have_text("Cut off: the answer reached its limit of tokens.")
    figures = re.compile(r"^400 tokens · [\d.]+ tokens/s · prompt \d+, [\d.]+ tokens/s · first token after [\d.]+ s$")
    expect(chat.answers.last.locator(".figures")).to_have_text(figures)


def test_reasoning_is_shown_folded_above_the_answer(chat: Chat) -> None:
    chat.set(System_prompt="Think before you answer.")
    chat.ask("What is 8 + 5?")
    chat.expect_answer("8 + 5 = 13.")
    thoughts = chat.answers.locator(".reasoning .prose")
    expect(thoughts).to_be_hidden()
    chat.page.get_by_text(re.compile(r"^(Thought for \d+\.\d s|Reasoning)$")).click()
    expect(thoughts).to_have_text(re.compile("13"))
    expect(chat.answers.last).not_to_contain_text("think>")
    chat.ask("What is 1 + 2?")
    expect(chat.answers).to_have_count(2)
    chat.expect_answer(re.compile("3"))
    expect(thoughts.first).to_be_visible()
    expect(thoughts.last).to_be_hidden()


def test_markdown_is_rendered_and_code_can_be_copied(visit: Open, server: Server) -> None:
    chat = visit(server, permissions=["clipboard-read", "clipboard-write"])
    chat.use("test/markdown")
    chat.ask("Go")
    expect(chat.answers.last).to_have_attribute("data-state", "done")
    prose = chat.answers.last.locator("> .prose")
    expect(prose.locator("h1")).to_have_text("Heading")
    expect(prose.locator("li")).to_have_text(["one", "two bold & x<y"])
    expect(prose.locator("td")).to_have_text(["1", "2"])
    expect(prose.locator("blockquote")).to_have_text("quoted")
    expect(prose.get_by_role("link")).to_have_attribute("rel", "noopener noreferrer")
    expect(prose.get_by_role("link")).to_have_attribute("target", "_blank")
    prose.get_by_role("button", name="Copy").click()
    expect(prose.get_by_role("button", name="Copied")).to_be_visible()
    assert chat.page.evaluate("navigator.clipboard.readText()") == 'if 1 < 2:\n    print("<b>")'


def test_model_output_never_runs_scripts_or_loads_files(visit: Open, tmp_path: Path) -> None:
    folder = write_chain(tmp_path / HOSTILE_NAME, says(HOSTILE), context=8192)
    with Server("--model", str(folder), home=tmp_path) as server:
        chat = visit(server)
        chat.ask(HOSTILE)
        expect(chat.answers.last).to_have_attribute("data-state", "done")
        messages = chat.page.locator("#messages")
        expect(messages.locator("script, img, iframe, [onclick], [onerror], [onload]")).to_have_count(0)
        links = messages.get_by_role("link").evaluate_all("links => links.map(link => link.href)")
        assert links == ["https://example.com/pixel.png", "https://example.com/other.png"]
        expect(messages).to_contain_text('<script>document.title = "owned"</script> <b onclick="x">bold</b>')
        expect(chat.page.get_by_label("Model").locator("option").last).to_contain_text(HOSTILE_NAME)
        assert chat.page.title() != "owned"


def test_markdown_nested_too_deeply_is_shown_as_plain_text(chat: Chat) -> None:
    chat.use("test/deep")
    chat.ask("Go")
    chat.expect_answer(re.compile(r"^Look:\s+>{50000}$"))


def test_the_page_asks_for_the_key_until_it_is_right(visit: Open, tmp_path: Path) -> None:
    with Server("--model", "demo", home=tmp_path, environment={"MLXK2_API_KEY": KEY}) as server:
        chat = visit(server)
        field = chat.page.get_by_label("This server asks for its key")
        refusal = chat.page.get_by_text("does not accept")
        expect(field).to_be_focused()
        expect(refusal).to_be_hidden()
        chat.press("Cancel")
        expect(chat.notice).to_contain_text("The API key is missing")
        chat.ask("What is the capital of France?")
        field.fill("wrong")
        field.press("Enter")
        expect(refusal).to_be_visible()
        field.fill(KEY)
        chat.press("Use it")
        chat.expect_answer(re.compile("Paris"))
        chat.page.reload()
        expect(chat.page.get_by_label("Model")).to_have_value("demo")
        expect(field).to_be_hidden()


def test_the_page_handles_a_loading_busy_or_stopped_server(visit: Open, tmp_path: Path) -> None:
    add_chain(tmp_path, "test/babble", BABBLE, context=1 << 20)
    limits = ("--max-concurrent", "1", "--max-queue", "0")
    with Server("--model", "test/babble", *limits, home=tmp_path, ready=False) as server:
        chat = visit(server)
        chat.ask("Go")
        chat.expect_growth()
        other = visit(server)
        other.ask("Go")
        expect(other.answers.last.locator(".note")).to_contain_text("Try again in a moment")
        chat.press("Stop")
        wait_until_idle(server)
        other.press("Try again")
        other.expect_growth()
        server.process.kill()
        expect(other.answers.last.locator(".note")).to_contain_text("The connection to the server was lost.")
        expect(other.answers.last.locator("> .prose")).to_have_text(re.compile(r"\w{20}"))
        other.ask("Still there?")
        expect(other.answers.last.locator(".note")).to_contain_text("The server can't be reached.")


def test_a_question_past_the_context_suggests_a_new_conversation(chat: Chat) -> None:
    chat.use("test/short")
    chat.ask("word " * 100)
    expect(chat.answers.last.locator(".note")).to_contain_text("64")
    expect(chat.answers.last.locator(".note")).to_contain_text("Start a new conversation")


def test_full_browser_storage_shows_a_notice_and_the_chat_works(chat: Chat) -> None:
    chat.page.evaluate(
        """() => { for (let size = 1 << 23; size; size >>= 1)
            for (let n = 0; n < 2; n++) try { localStorage.setItem(`x${size}-${n}`, "x".repeat(size)) } catch {} }"""
    )
    chat.ask("What is the capital of France?")
    chat.expect_answer(PARIS)
    expect(chat.notice).to_contain_text("can't keep the conversation")
    chat.new()
    chat.page.get_by_role("link", name=re.compile("capital")).click()
    chat.expect_answer(PARIS)


def test_a_browser_without_storage_shows_a_notice_and_the_chat_works(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    preferences = tmp_path / "Default" / "Preferences"
    preferences.parent.mkdir()
    # This is what "block all cookies" in the settings does.
    preferences.write_text('{"profile": {"default_content_setting_values": {"cookies": 2}}}')
    chromium = browser.browser_type
    with chromium.launch_persistent_context(tmp_path, executable_path=CHROMIUM, args=FLAGS) as context:
        page = context.new_page()
        chat = Chat(page, server.url)
        with pytest.raises(PlaywrightError, match="Access is denied"):
            page.evaluate("localStorage.length")
        chat.ask("Hello")
        expect(chat.notice).to_contain_text("can't keep the conversation")
        expect(chat.answers.last).to_have_attribute("data-state", "done")
        assert chat.troubles == []


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_dark_mode_of_the_system(visit: Open, server: Server, scheme: str, is_dark: bool) -> None:
    chat = visit(server, color_scheme=scheme)
    colour = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour))) < 3 * 128) is is_dark


def test_the_page_fits_a_phone(visit: Open, server: Server) -> None:
    chat = visit(server, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    chat.use("test/markdown")
    chat.message.fill("x" * 200)
    chat.press("Send")
    chat.expect_answer(re.compile("Heading"))
    chat.use("test/babble")
    chat.message.fill("Go")
    chat.press("Send")
    chat.expect_growth()
    chat.press("Stop")
    assert chat.page.evaluate("document.documentElement.scrollWidth") == 360
    assert chat.page.evaluate("document.getElementById('scroller').scrollWidth") == 360
    new = chat.page.get_by_role("link", name="New conversation")
    expect(new).to_be_hidden()
    chat.page.get_by_role("button", name="Conversations", exact=True).click()
    new.click()
    expect(new).to_be_hidden()
    expect(chat.questions).to_have_count(0)
    chat.page.get_by_role("button", name="Conversations", exact=True).click()
    new.click()
    expect(new).to_be_hidden()


def test_new_text_keeps_the_scroll_position(visit: Open, server: Server) -> None:
    chat = visit(server, viewport={"width": 360, "height": 400})
    chat.use("test/babble")
    chat.ask("Go")
    to_end = chat.page.get_by_role("button", name="Scroll to the end")
    while chat.page.evaluate("scroller.scrollTop") < 100:
        chat.expect_growth()
    expect(to_end).to_be_hidden()
    chat.page.locator("#scroller").evaluate("node => node.scrollTo(0, 10)")
    expect(to_end).to_be_visible()
    chat.expect_growth()
    assert chat.page.evaluate("scroller.scrollTop") == 10
    to_end.click()
    expect(to_end).to_be_hidden()
    chat.expect_growth()
    assert chat.page.evaluate("scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight") < 60
    chat.press("Stop")


def test_the_page_works_with_the_keyboard_alone(chat: Chat) -> None:
    expect(chat.page.locator("#settings-open")).to_be_focused()
    chat.message.focus()
    chat.page.keyboard.type("Hello")
    chat.page.keyboard.press("Shift+Enter")
    chat.page.keyboard.type("you")
    expect(chat.message).to_have_value("Hello\nyou")
    chat.page.keyboard.press("Enter")
    expect(chat.questions).to_have_text(["Hello\nyou"])
    expect(chat.page.locator("#announcement")).to_have_text(re.compile("[.!?]$"))


def test_screen_readers_get_the_answer(chat: Chat) -> None:
    chat.ask("What is the capital of France?")
    expect(chat.page.get_by_role("status").filter(has_text=PARIS)).to_have_count(1)
    expect(chat.answers.last).to_have_attribute("aria-busy", "false")


def test_the_page_may_load_only_its_own_files(server: Server) -> None:
    page = httpx.get(server.url)
    files = {"page/chat.js", *re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)}
    for path in list(files):
        script = httpx.get(f"{server.url}/{path}")
        assert script.headers["X-Content-Type-Options"] == "nosniff"
        assert script.headers["Cache-Control"] == "no-cache"
        assert httpx.get(script.url, headers={"If-None-Match": script.headers["ETag"]}).status_code == 304
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    missing = httpx.get(f"{server.url}/page/no-such-file.js")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


def test_the_browser_refuses_to_turn_text_into_html(browser: Browser, server: Server) -> None:
    with browser.new_page() as page:
        page.goto(server.url)
        with pytest.raises(PlaywrightError, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = '<b>bold</b>'")


def test_the_page_takes_less_than_150_kilobytes(visit: Open, server: Server) -> None:
    chat = visit(server)
    sizes = chat.page.evaluate("performance.getEntriesByType('resource').map(entry => entry.decodedBodySize)")
    assert sum(sizes) < 150_000
