import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rtp_serve.errors import ConfigError
from rtp_serve.loader.cache import Cache, cache_root, publish

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from rtp_serve.loader.cache import Cache
with Cache(Path(sys.argv[1])).workspace(sys.argv[2]) as work:
    (work / "half").write_text("written")
    print("holding", flush=True)
    sys.stdin.read()
"""


def hold_workspace(root: Path, name: str) -> subprocess.Popen[str]:
    """Another process that is making the entry and waits for its input to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"RTP_SERVE_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/rtp_serve"),
        ({"RTP_SERVE_CACHE": ""}, str(Path.home() / ".cache/rtp_serve")),
    ],
)
def test_the_cache_is_where_the_environment_says(environ: dict[str, str], expected: str):
    assert cache_root(environ) == Path(expected)


def test_a_workspace_is_empty_and_leaves_nothing(tmp_path: Path):
    cache = Cache(tmp_path)
    for _ in range(2):
        with cache.workspace("m") as work:
            assert list(work.iterdir()) == []
            (work / "file").touch()
    assert not work.exists()


def test_a_failed_maker_leaves_nothing(tmp_path: Path):
    def fail() -> None:
        with Cache(tmp_path).workspace("m") as work:
            (work / "file").touch()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert list((tmp_path / "models").iterdir()) == []


def test_a_killed_maker_neither_blocks_nor_leaves_debris(tmp_path: Path):
    kill(hold_workspace(tmp_path, "m"))
    assert (tmp_path / "models/.m.work/half").exists()
    with Cache(tmp_path).workspace("m") as work:
        assert list(work.iterdir()) == []
    assert list((tmp_path / "models").iterdir()) == []


def test_debris_of_another_entry_is_removed_too_unless_its_maker_lives(tmp_path: Path):
    kill(hold_workspace(tmp_path, "dead"))
    alive = hold_workspace(tmp_path, "alive")
    with Cache(tmp_path).workspace("m"):
        names = {path.name for path in (tmp_path / "models").iterdir()}
    kill(alive)
    assert names == {".m.work", ".alive.work"}


def test_only_one_process_makes_an_entry_at_a_time(tmp_path: Path):
    process = hold_workspace(tmp_path, "m")
    waiting = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "m"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.5)
    process.communicate("")
    assert waiting.wait(20) == 0
    waiting.communicate()


def test_published_files_are_readable_by_everybody_whatever_the_umask(tmp_path: Path):
    before = os.umask(0o077)
    try:
        built = tmp_path / "built"
        built.mkdir()
        (built / "file").touch()
        publish(built, tmp_path / "final")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("final", "final/file")]
    assert modes == [0o755, 0o644]
    assert not built.exists()


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="set RTP_SERVE_CACHE to another directory"),
        Cache(tmp_path / "file").workspace("m"),
    ):
        pass
