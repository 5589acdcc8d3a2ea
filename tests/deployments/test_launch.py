"""The launcher as a user runs it: what it says, what it starts and what it leaves."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray import serve

from deployments.environment import MARK
from tests.deployments.applications import RaySession, free_port, tiny_engine

READY = "Ctrl-C stops it."
ASK = """
from ray import serve
body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
print(serve.get_app_handle("rtp-serve").chat.remote(body).result()["object"])
"""


def write_config(directory: Path, model: Path | str, **changes: Any) -> Path:
    """A file like the quickstart's, for a small model and on a port of its own."""
    text = Path("configs/quickstart.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    config["http_options"]["port"] = free_port()
    (application,) = config["applications"]
    ingress = application["args"]["ingress"]
    application["args"] = {"engine": tiny_engine(Path(model)), "ingress": ingress, **changes}
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def environment(**changes: str) -> dict[str, str]:
    """A user's: nothing of the test session's cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, **changes}


class Launch:
    """A launcher in a process group of its own."""

    def __init__(self, config: Path, prefix: tuple[str, ...] = (), **variables: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "rtp_serve.cli.main", "serve", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(**variables),
            start_new_session=True,
        )
        self.output = ""

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if READY in line:
                return
        raise AssertionError(f"it did not become ready:\n{self.output}")

    def stop(self, number: signal.Signals, *, to_group: bool = False) -> int:
        """Signal the process, or its whole group as a terminal does; the exit code."""
        if to_group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code."""
        try:
            rest, _ = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            raise
        self.output += rest
        return self.process.returncode

    def curl(self) -> str:
        """Run the command that was printed."""
        start = self.output.index("curl ")
        command = self.output[start : self.output.index("\n\n", start)]
        return subprocess.run(
            command, shell=True, capture_output=True, text=True, check=True, timeout=30
        ).stdout

    def run_python(self, source: str) -> str:
        """Run a script with the variables that were printed for it."""
        (line,) = (line for line in self.output.splitlines() if line.endswith(" python SCRIPT"))
        variables = dict(word.split("=", 1) for word in line.split() if "=" in word)
        return subprocess.run(
            [sys.executable, "-c", source],
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()


# Arenas of tests that run beside: theirs have another application's name.
_OTHERS = re.compile("rtp_serve-(?!rtp-serve-)")


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Temporary files, shared memory and processes are afterwards what they were before."""
    before = _traces()
    yield
    assert _traces() == before


def _traces() -> tuple[list[str], list[str], int]:
    temporary = sorted(os.listdir(tempfile.gettempdir()))
    names = [name for name in temporary if name.startswith(("rtp-", "ray"))]
    shared = [name for name in sorted(os.listdir("/dev/shm")) if not _OTHERS.match(name)]
    return names, shared, _marked_processes()


def _marked_processes() -> int:
    found = 0
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found += f"{MARK}=".encode() in entry.read_bytes()
    return found


def run_to_failure(config: Path, **variables: str) -> str:
    """The one line of a launch that fails."""
    launch = Launch(config, **variables)
    output, _ = launch.process.communicate(timeout=60)
    assert launch.process.returncode == 1, output
    return output.strip()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replicas": {}}, "unknown key 'replicas' in AppConfig; did you mean 'replica'?"),
        ({"replica": {"num_replicas": 0}}, "replica.num_replicas"),
    ],
)
def test_a_wrong_setting_is_one_line_and_starts_nothing(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    with nothing_left():
        output = run_to_failure(write_config(tmp_path, "any", **changes))
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) == 1


def test_an_unknown_model_is_one_line_and_starts_nothing(tmp_path: Path):
    config = write_config(tmp_path, "no-such-model")
    with nothing_left():
        output = run_to_failure(config)
    assert output.startswith("error: model 'no-such-model'")


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path, tiny_model: Path):
    config = write_config(tmp_path, tiny_model)
    port = yaml.safe_load(config.read_text())["http_options"]["port"]
    with socket.socket() as taken, nothing_left():
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert f"cannot listen on 127.0.0.1 port {port}" in run_to_failure(config)


@pytest.mark.ray
def test_sigterm_lets_streams_finish_and_takes_everything_down(tmp_path: Path, tiny_model: Path):
    tiers = {"host": {"enable": True, "memory": "64MiB"}}
    engine = {**tiny_engine(tiny_model), "kv_store": tiers}
    config = write_config(tmp_path, tiny_model, engine=engine)
    port = yaml.safe_load(config.read_text())["http_options"]["port"]
    with nothing_left():
        launch = Launch(config)
        launch.wait_until_ready()
        assert '"role":"assistant"' in launch.curl()
        url = f"http://127.0.0.1:{port}/v1/completions"
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", url, json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            launch.process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines)
        assert launch.wait() == 0, launch.output


def _small_shm() -> tuple[str, ...]:
    """A prefix that runs a command with Docker's 64 MB of shared memory."""
    script = 'mount -t tmpfs -o size=64m shm /dev/shm && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh")


def _can_shrink_shm() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_small_shm(), "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.ray
def test_ctrl_c_takes_everything_down_with_little_shared_memory(tmp_path: Path, tiny_model: Path):
    prefix = _small_shm() if _can_shrink_shm() else ()
    with nothing_left():
        launch = Launch(write_config(tmp_path, tiny_model), prefix)
        launch.wait_until_ready()
        assert launch.run_python(ASK) == "chat.completion"
        assert launch.stop(signal.SIGINT, to_group=True) == 0, launch.output


@pytest.mark.ray
def test_a_second_ctrl_c_ends_streams_and_takes_everything_down(tmp_path: Path, tiny_model: Path):
    config = write_config(tmp_path, tiny_model)
    port = yaml.safe_load(config.read_text())["http_options"]["port"]
    with nothing_left():
        launch = Launch(config)
        launch.wait_until_ready()
        url = f"http://127.0.0.1:{port}/v1/completions"
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True, "n": 16}
        with httpx.stream("POST", url, json=body, timeout=30) as response:
            next(response.iter_lines())
            launch.process.send_signal(signal.SIGINT)
            assert launch.process.stdout is not None
            while "once more" not in launch.process.stdout.readline():
                pass
            assert launch.stop(signal.SIGINT) == 0, launch.output
        assert "SIGTERM handler" not in launch.output, "a second Ray was started"


@contextlib.contextmanager
def heard_by_children(number: signal.Signals) -> Iterator[None]:
    """A test run under nohup ignores SIGHUP, and so would what it starts."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_starting_takes_everything_down(
    tmp_path: Path, tiny_model: Path, number: signal.Signals
):
    with nothing_left(), heard_by_children(number):
        launch = Launch(write_config(tmp_path, tiny_model))
        assert launch.process.stdout is not None
        assert "starting Ray" in launch.process.stdout.readline()
        assert launch.stop(number, to_group=True) == 0, launch.output


@pytest.mark.ray
def test_on_a_joined_cluster_other_applications_stay(
    session: RaySession, tmp_path: Path, tiny_model: Path
):
    neighbour = tmp_path / "neighbour.yaml"
    neighbour.write_text(
        "applications: [{name: neighbour, route_prefix: /neighbour,"
        " import_path: 'tests.deployments.neighbour:app'}]"
    )
    variables = {"RAY_ADDRESS": session.address, "RAY_AUTH_MODE": "disabled"}
    subprocess.run(
        [f"{sys.prefix}/bin/serve", "run", "--non-blocking", str(neighbour)],
        env=environment(**variables),
        capture_output=True,
        check=True,
        timeout=60,
    )
    try:
        before = _pid_of_neighbour(session)
        launch = Launch(write_config(tmp_path, tiny_model), **variables)
        launch.wait_until_ready()
        assert f"{session.http_url}/v1" in launch.output
        assert launch.stop(signal.SIGTERM) == 0, launch.output
        assert list(serve.status().applications) == ["neighbour"]
        assert _pid_of_neighbour(session) == before
    finally:
        serve.delete("neighbour")


def _pid_of_neighbour(session: RaySession) -> str:
    while True:
        answer = httpx.get(f"{session.http_url}/neighbour", timeout=10)
        if answer.status_code == 200:
            return answer.text
