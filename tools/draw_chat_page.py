"""Make `docs/chat-page.png`, the README's picture of the chat page, from the real page with the demo model.

    python tools/draw_chat_page.py

Needs playwright and a Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "chat-page.png"
EARLIER = ("How do I start the server?", "Hello", "What is 3 + 4?")


@contextmanager
def serve() -> Iterator[str]:
    """Run a server with the demo model and an empty cache; yield its address."""
    command = [sys.executable, "-m", "mlxk2", "serve", "--model", "demo", "--port", "0", "--json"]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HF_HOME": home}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield json.loads(process.stdout.readline())["data"]["url"]
            finally:
                process.terminate()


def ask(page: Page, question: str) -> None:
    """Send a message and wait until the answer is complete."""
    answers = page.locator("article.answer")
    count = answers.count()
    page.get_by_label("Message", exact=True).fill(question)
    page.keyboard.press("Enter")
    expect(answers).to_have_count(count + 1)
    expect(answers.last).to_have_attribute("data-state", "done", timeout=60_000)


def change_setting(page: Page, label: str, value: str) -> None:
    """Change a setting."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Done").click()


def talk(page: Page) -> None:
    """Have the conversations that the picture shows."""
    change_setting(page, "Temperature", "0")
    for question in EARLIER:
        ask(page, question)
        page.get_by_role("link", name="New conversation").click()
        expect(page.locator("article")).to_have_count(0)
    ask(page, "What is the capital of France?")
    change_setting(page, "System prompt", "Think before you answer.")
    ask(page, "What is 8 + 5?")
    page.locator("summary:visible").click()
    page.get_by_label("Message", exact=True).focus()


def main() -> None:
    """Start the server, have the conversations, and take the picture."""
    with serve() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 920, "height": 520}, device_scale_factor=1.6, reduced_motion="reduce"
        )
        page.goto(url)
        talk(page)
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
