"""Chromium and node for the tests that need them: where they are, how they start, what happens without."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# As root, as in a container, Chromium starts only without its sandbox; the others keep it from calling home.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium_path() -> str:
    """The path of Chromium: what VIT_COURSE_CHROMIUM names, or the first on PATH that is known to work.

    Where there is none, the calling test is skipped, or fails on CI.
    """
    named = os.environ.get("VIT_COURSE_CHROMIUM")
    return program(
        [named] if named else CHROMIUM_NAMES,
        "this test needs Chromium: install it (Debian: apt-get install chromium), or name yours in "
        "VIT_COURSE_CHROMIUM",
    )


def node_path() -> str:
    """The path of node; without it the calling test is skipped, or fails on CI."""
    return program(["node"], "this test needs node 18 or newer: install it (Debian: apt-get install nodejs)")


def program(names: list[str] | tuple[str, ...], missing: str) -> str:
    """The path of the first of these programs that is installed.

    Args:
        names: what the program may be called.
        missing: the sentence with which the calling test is skipped, or fails on CI, where there is none.
    """
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    return found


@contextmanager
def launch() -> Iterator[Browser]:
    """Gives a headless Chromium with a fresh profile as playwright's `Browser`, and closes it."""
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            browser.close()
