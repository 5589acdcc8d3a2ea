"""The commands as a user types them."""

import subprocess
import sys

import pytest

from rtp_serve.clock import WallClock


def run_cli(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rtp_serve.cli.main", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_chat_answers_over_several_turns_and_leaves_at_the_end_of_input():
    done = run_cli(
        "chat", "--temperature", "0", "--max-tokens", "24", stdin="What is 2+2?\n/clear\nSay hi.\n"
    )
    assert done.returncode == 0, done.stderr
    assert "4" in done.stdout.splitlines()[0]
    assert len(done.stdout.splitlines()) >= 2


def test_the_first_answer_of_a_chat_comes_within_twelve_seconds():
    """On a warm cache; the time covers interpreter, torch, model and the whole short answer."""
    clock = WallClock()
    started = clock.monotonic()
    done = run_cli("chat", "--temperature", "0", "--max-tokens", "8", stdin="What is 2+2?\n")
    assert done.returncode == 0, done.stderr
    assert clock.monotonic() - started < 12


def test_generate_streams_a_continuation():
    done = run_cli("generate", "One, two, three,", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "four" in done.stdout


def test_generate_reads_standard_input():
    done = run_cli("generate", "-", "--max-tokens", "8", stdin="One, two, three,")
    assert "four" in done.stdout


def test_models_lists_the_catalogue():
    done = run_cli("models")
    assert "smollm2-135m-instruct" in done.stdout
    assert "Apache-2.0" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chat", "no-such-model"), "no-such-model"),
        (("generate", "x", "--temperature", "-1"), "temperature must be"),
        (("config", "check", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(arguments: tuple[str, ...], message: str):
    done = run_cli(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
