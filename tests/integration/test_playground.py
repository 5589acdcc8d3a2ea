"""The playground in a real browser, against a server whose engine says what it is told to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from rtp_serve.config.api import AuthConfig
from rtp_serve.errors import Overloaded
from tests.integration.browser import CHROMEDRIVER, CHROMIUM, open_browser, serve_in_thread
from tests.unit.api.scripted_engine import ScriptedEngine
from tests.unit.api.serving import decode_prompt, digest, make_app, make_engine

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver"),
]

KEY = AuthConfig.model_validate({"api_keys": [{"name": "a", "sha256": digest("good-key")}]})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Playground:
    """The page as its user sees it."""

    def __init__(self, browser: Chrome) -> None:
        self._browser = browser
        self.console()  # what earlier pages left there

    def one(self, selector: str) -> WebElement:
        return self._browser.find_element(By.CSS_SELECTOR, selector)

    def wait(self, condition: Callable[[], Any]) -> Any:
        ignored = [NoSuchElementException, StaleElementReferenceException]
        return WebDriverWait(self._browser, 10, 0.02, ignored).until(lambda _: condition())

    def wait_for_model(self) -> None:
        self.wait(lambda: self.one("#model").get_attribute("data-state") == "ready")

    def say(self, text: str) -> None:
        self.one("#prompt").send_keys(text + Keys.ENTER)

    def wait_for_answer(self) -> tuple[str, str]:
        """(outcome, text) of the last answer."""
        last = ".message.assistant:last-child"
        outcome = self.wait(lambda: self.one(last).get_attribute("data-outcome"))
        return outcome, self.one(f"{last} .text").text

    def stat(self, name: str) -> str:
        return self.one(f".message:last-child [data-stat={name}]").text

    def console(self) -> list[str]:
        """What was logged since it was last asked for."""
        return [entry["message"] for entry in self._browser.get_log("browser")]


@contextmanager
def playground(browser: Chrome, engine: ScriptedEngine, **app: Any) -> Iterator[Playground]:
    with serve_in_thread(make_app(engine, **app)) as url:
        page = Playground(browser)
        browser.get(url)
        try:
            yield page
        finally:
            browser.get("about:blank")  # closes the connections that the server waits for


def test_an_answer_streams_in_with_its_figures(browser: Chrome):
    engine = make_engine("Rainbows are **light**.", num_cached_tokens=16)
    with playground(browser, engine) as page:
        page.wait_for_model()
        assert page.one("#model").text.startswith("tiny")
        page.say("Why?")
        assert page.wait_for_answer() == ("complete", "Rainbows are light.")
        assert page.one(".assistant strong").text == "light"
        assert page.stat("cached") == "16 of 22 prompt tokens cached"
        assert page.stat("tokens") == "24 tokens"
        assert page.stat("rate").endswith("tokens/s")
        assert page.stat("ttft").endswith("ms to first token")
        assert page.console() == [], "nothing failed and nothing was blocked"


def test_the_conversation_goes_on_and_starts_anew(browser: Chrome):
    engine = make_engine("Yes.")
    with playground(browser, engine) as page:
        page.wait_for_model()
        page.one("#prompt").send_keys("a" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "b")
        page.say("")
        page.wait_for_answer()
        page.say("More")
        page.wait(lambda: len(engine.requests) == 2)
        assert decode_prompt(engine, 1) == "<user>a\nb;<assistant>Yes.;<user>More;<assistant>"
        page.one("#new").click()
        page.say("New")
        page.wait(lambda: len(engine.requests) == 3)
        assert decode_prompt(engine, 2) == "<user>New;<assistant>"


def test_stopping_ends_the_engines_work_and_keeps_the_text(browser: Chrome):
    engine = make_engine("Once upon a time", stall_after=4)
    with playground(browser, engine) as page:
        page.wait_for_model()
        page.say("Tell")
        page.wait(lambda: page.one(".assistant .text").text == "Once")
        page.one("#send").click()
        assert page.wait_for_answer() == ("stopped", "Once")
        page.wait(lambda: not engine.open_ids)


def test_leaving_the_page_ends_the_engines_work(browser: Chrome):
    engine = make_engine("Once upon a time", stall_after=4)
    with playground(browser, engine) as page:
        page.wait_for_model()
        page.say("Tell")
        page.wait(lambda: page.one(".assistant .text").text == "Once")
        browser.get("about:blank")
        page.wait(lambda: not engine.open_ids)


def test_the_key_is_asked_for_when_the_server_wants_one(browser: Chrome):
    engine = make_engine()
    with playground(browser, engine, auth=KEY) as page:
        page.wait(lambda: page.one("#key").is_displayed())
        page.one("#key").send_keys("bad-key" + Keys.ENTER)
        page.wait(lambda: "does not know" in page.one("#key-note").text)
        page.one("#key").send_keys("good-key" + Keys.ENTER)
        page.wait_for_model()
        page.say("Hi")
        assert page.wait_for_answer() == ("complete", "Hello there.")
        assert engine.requests[0].cache_salt == "a"


def test_what_a_model_writes_is_text_and_never_markup(browser: Chrome):
    trick = "<img src=x onerror=alert(1)>\n```html\n<b>bold</b>\n```\n`<i>`"
    with playground(browser, make_engine(trick)) as page:
        page.wait_for_model()
        page.say("<script>alert(2)</script>")
        page.wait_for_answer()
        assert page.one(".user .text").text == "<script>alert(2)</script>"
        assert page.one(".assistant .text > p").text == "<img src=x onerror=alert(1)>"
        assert page.one(".assistant pre").text == "<b>bold</b>"
        assert page.console() == []


def test_an_error_is_told_and_can_be_tried_again(browser: Chrome):
    engine = make_engine(failure=Overloaded("9 requests are waiting", retry_after_s=7))
    with playground(browser, engine) as page:
        page.wait_for_model()
        page.say("Hi")
        assert page.wait_for_answer() == ("failed", "")
        assert "9 requests are waiting (wait 7 s)" in page.one(".error").text
        engine.failure = None
        page.one(".error button").click()
        page.wait(lambda: page.wait_for_answer() == ("complete", "Hello there."))


def test_settings_reach_the_server(browser: Chrome):
    engine = make_engine()
    with playground(browser, engine) as page:
        page.wait_for_model()
        page.one("#open-settings").click()
        page.one("#system").send_keys("Be brief.")
        page.one("#temperature").send_keys(Keys.HOME)
        page.one("#max-tokens").send_keys("3" + Keys.ENTER)
        page.say("Hi")
        assert page.wait_for_answer() == ("complete", "Hell")
        assert decode_prompt(engine) == "<system>Be brief.;<user>Hi;<assistant>"
        assert engine.requests[0].sampling.temperature == 0
