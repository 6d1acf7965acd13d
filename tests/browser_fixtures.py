"""Debian's chromium, driven as a person uses it, and a folder for what it showed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE_MS = 60_000.0  # with a busy machine: pages answer within a second on a free one
SETTLED_MS = 2_000.0  # timelines and charts glide into place
QUIET = (  # it runs as root in CI, and asks nobody outside this machine on its own
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HERE = ("http://127.0.0.1:", "file:", "data:", "blob:", "about:")


def chromium() -> str:
    """Path of the browser; the test is skipped where there is none."""
    found = os.environ.get("COPPICE_CHROMIUM") or shutil.which("chromium")
    if not found:
        pytest.skip("no chromium: install Debian's package chromium, or set COPPICE_CHROMIUM to the program's path")
    return found


@contextmanager
def open_browser() -> Iterator[Page]:
    """An empty page; by the time it closes, it may have asked for nothing outside this machine.

    One browser per test: an open one keeps an event loop running in this thread, in which no flow could run.
    """
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    outside: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(QUIET))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: None if request.url.startswith(HERE) else outside.append(request.url))
        yield page
        browser.close()
    assert outside == []


def keep(page: Page, name: str) -> None:
    """Keeps what the page shows in ``$COPPICE_SCREENSHOTS``, or ``.coppice/screenshots`` of the checkout."""
    folder = Path(os.environ.get("COPPICE_SCREENSHOTS") or Path(__file__).resolve().parents[1] / ".coppice/screenshots")
    page.wait_for_timeout(SETTLED_MS)
    page.screenshot(path=folder / f"{name}.png")
