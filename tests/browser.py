"""A headless Chromium, driven as a person would: by what is written on the page."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

_PATIENCE = 120.0
"""Seconds for a page to show something, on a busy machine."""
_WIDTH, _HEIGHT = 1280, 860
_COLOURS = 64


class Browser:
    """One window."""

    def __init__(self, driver: Any, pictures: Path) -> None:  # noqa: ANN401 (selenium's WebDriver)
        self._driver = driver
        self._pictures = pictures

    @property
    def address(self) -> str:
        return str(self._driver.current_url)

    @property
    def text(self) -> str:
        """All that is written on the page."""
        return str(self._driver.execute_script("return document.body ? document.body.innerText : ''"))

    def open(self, address: str, *expected: str) -> None:
        """Go to an address, and wait until the page shows all that is expected."""
        # An address that differs behind the # alone would not load the page anew.
        self._driver.get("about:blank")
        self._driver.get(address)
        self.see(*expected)

    def see(self, *expected: str) -> None:
        """Wait until the page shows all that is expected."""
        self.wait(lambda: all(text in self.text for text in expected), f"{expected} on {self.address}")

    def wait(self, found: Any, what: str, patience: float = _PATIENCE) -> Any:  # noqa: ANN401
        """The first thing found that is true; a page that changes meanwhile is looked at again."""
        from selenium.common.exceptions import WebDriverException

        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            try:
                if result := found():
                    return result
            except WebDriverException:
                pass
            time.sleep(0.3)
        raise AssertionError(f"not within {patience:.0f} seconds: {what}; the page shows: {self.text[-2000:]}")

    def elements(self, path: str) -> list[Any]:
        """What an XPath finds."""
        return list(self._driver.find_elements("xpath", path))

    def click(self, path: str) -> None:
        """Click the first element that an XPath finds, once it is there."""

        def clicked() -> bool:
            found = self.elements(path)
            if found:
                self._driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found[0])
                found[0].click()
            return bool(found)

        self.wait(clicked, f"a click on {path}")

    def press(self, name: str) -> None:
        """Click the button, tab or entry of a menu with this text."""
        self.click(
            f"//*[self::button or self::a or @role='tab' or @role='menuitem' or @role='button']"
            f"[normalize-space(.)='{name}' or @aria-label='{name}']"
        )

    def fill(self, value: str, *field: str) -> None:
        """Type a value into a field of a form of Prefect's, named by its part and its label."""
        path = f"{_form_field(field)}//*[self::input or self::textarea]"
        self.click(path)
        entry = self.elements(path)[0]
        entry.clear()
        entry.send_keys(value)

    def search(self, field: str, value: str) -> None:
        """Type into a field of search, named by what it shows while it is empty."""
        path = f"//input[@placeholder='{field}']"
        self.click(path)
        self.elements(path)[0].send_keys(value)

    def show(self, *field: str) -> None:
        """Bring a field of a form into the middle of the window."""
        [found] = self.elements(_form_field(field))
        self._driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)

    def dismiss(self) -> None:
        """Close whatever lies over or beside the page: a new profile is greeted by dialogs and panels."""
        time.sleep(2)
        self._driver.execute_script(
            "document.querySelectorAll('button[aria-label=Close]').forEach(button => button.click())"
        )

    def complaint(self) -> str:
        """What the browser says of the field that is wrong, such as a value out of its bounds."""
        return str(
            self._driver.execute_script(
                "const e = [...document.querySelectorAll('input')].find(e => !e.validity.valid);"
                "return e ? e.validationMessage : ''"
            )
        )

    def drawn(self) -> int:
        """How many pictures of the page's main part are there and not broken."""
        script = (
            "return [...document.querySelectorAll('main img')].filter(i => i.complete && i.naturalWidth > 100).length"
        )
        return int(self._driver.execute_script(script))

    def picture(self, name: str, height: int = _HEIGHT, seconds: float = 2) -> Path:
        """What the window shows, as a small PNG; `seconds` are what the page gets to draw itself."""
        self._driver.set_window_size(_WIDTH, height)
        time.sleep(seconds)
        path = self._pictures / f"{name}.png"
        picture = Image.open(BytesIO(self._driver.get_screenshot_as_png())).convert("RGB")
        picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        return path


def _form_field(names: tuple[str, ...]) -> str:
    """The XPath of a field of a form of Prefect's, by its part and its label."""
    path = "//main"
    for name in names:
        label = f"//label[normalize-space(text())='{name}' or normalize-space(text())='{name} (Optional)']"
        path += f"{label}/ancestor::div[contains(@class, 'group')][1]"
    return path


@contextmanager
def chromium(profile: Path, pictures: Path) -> Iterator[Browser]:
    """A browser with an empty profile; skips the test where there is no Chromium on this machine."""
    program, driver_program = (_program(*names) for names in (("chromium", "google-chrome"), ("chromedriver",)))
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    # The graph of a run is drawn by WebGL, here by the processor.
    drawing = ("--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    window = (f"--window-size={_WIDTH},{_HEIGHT}", f"--user-data-dir={profile}", "--disable-dev-shm-usage")
    for argument in ("--headless", "--no-sandbox", *drawing, *quiet, *window):
        options.add_argument(argument)
    pictures.mkdir(parents=True, exist_ok=True)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_program))
    try:
        driver.set_page_load_timeout(_PATIENCE)
        yield Browser(driver, pictures)
    finally:
        driver.quit()


def _program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        if os.environ.get("ATALAIA_REQUIRE_BROWSER"):
            pytest.fail(f"{names[0]} must be here; on Debian: apt-get install chromium chromium-driver")
        pytest.skip(f"{names[0]} is not on this machine; on Debian: apt-get install chromium chromium-driver")
    return found
