"""A headless Chromium (Debian: ``apt-get install chromium chromium-driver``) for the tests that look at pages."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

OUTPUT = Path(__file__).resolve().parents[1] / "test-output"
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1800,1300",
]


@contextmanager
def chromium():  # type: ignore[no-untyped-def]
    """A Selenium driver; the test is skipped where Chromium, its driver or Selenium is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield page
    finally:
        page.quit()


def screenshot(page, name: str) -> Path:  # type: ignore[no-untyped-def]
    """The page as it is now, in ``test-output/NAME.png``."""
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / f"{name}.png"
    page.save_screenshot(str(path))
    return path
