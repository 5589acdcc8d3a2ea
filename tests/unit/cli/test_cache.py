from pathlib import Path

import pytest
import typer

from rtp_serve.cli.cache import list_files, remove_files, verify_files
from rtp_serve.clock import VirtualClock
from rtp_serve.errors import ConfigError
from rtp_serve.loader.store.directory import StoreDirectory
from tests.unit.loader.store_files import flip, make_key, write_file

Captured = pytest.CaptureFixture[str]


def test_each_file_is_listed_with_its_age_and_model(tmp_path: Path, capsys: Captured):
    store = StoreDirectory(tmp_path)
    first, second = make_key("a"), make_key("b", dtype="float32")
    now_s = write_file(store, first).stat().st_mtime + 7300
    write_file(store, second)
    store.touch(first.name, now_s - 3 * 86400)
    store.touch(second.name, now_s - 90)
    list_files(str(tmp_path), VirtualClock(now_s))
    header, newest, oldest, _, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "size", "type", "written", "used", "model"]
    assert newest.split()[:4] == [second.name, "0", "MiB", "float32"]
    assert newest.split()[6:] == ["90", "s", "/models/m"]
    assert oldest.split() == f"{first.name} 0 MiB bfloat16 2 h 3 d /models/m".split()
    assert total == f"2 files, 0 MiB, in {tmp_path}"


def test_a_damaged_file_is_listed_as_what_it_is(tmp_path: Path, capsys: Captured):
    flip(write_file(StoreDirectory(tmp_path)), 70)
    list_files(str(tmp_path))
    assert "CORRUPT: its header's digest differs" in capsys.readouterr().out


def test_an_empty_store_has_nothing_to_list_remove_or_verify(tmp_path: Path, capsys: Captured):
    list_files(str(tmp_path))
    remove_files(str(tmp_path), "0")
    verify_files(str(tmp_path))
    said = capsys.readouterr().out
    assert "0 files, 0 MiB" in said
    assert "nothing to remove" in said


def test_gc_removes_leftovers_and_down_to_a_size_the_longest_unused(
    tmp_path: Path, capsys: Captured
):
    store = StoreDirectory(tmp_path)
    old, new = (write_file(store, make_key(name), used_s) for name, used_s in (("a", 1), ("b", 2)))
    old.with_suffix(".corrupt").write_bytes(b"damaged")
    remove_files(str(tmp_path), None)
    assert capsys.readouterr().out == f"removed {old.stem}.corrupt\n"
    assert old.exists()
    remove_files(str(tmp_path), str(new.stat().st_size))
    assert f"removed {old.name}" in capsys.readouterr().out
    assert not old.exists()
    assert new.exists()


def test_verify_says_which_file_is_damaged_moves_it_aside_and_exits_with_1(
    tmp_path: Path, capsys: Captured
):
    store = StoreDirectory(tmp_path)
    good, bad = write_file(store, make_key("a")), write_file(store, make_key("b"))
    verify_files(str(tmp_path))
    assert capsys.readouterr().out.count("  ok\n") == 2
    flip(bad, bad.stat().st_size // 2)
    with pytest.raises(typer.Exit) as caught:
        verify_files(str(tmp_path))
    assert caught.value.exit_code == 1
    said = capsys.readouterr().out
    assert f"{good.stem}  ok\n" in said
    assert f"{bad.stem}  CORRUPT: matrix lm_head has another digest than was written\n" in said
    assert bad.with_suffix(".corrupt").exists()
    assert not bad.exists()


def test_a_file_under_another_files_name_is_damaged(tmp_path: Path, capsys: Captured):
    store = StoreDirectory(tmp_path)
    write_file(store, make_key("a")).rename(store.finished(make_key("b").name))
    with pytest.raises(typer.Exit):
        verify_files(str(tmp_path))
    assert "CORRUPT: it holds other weights than its name says" in capsys.readouterr().out


def test_mistakes_are_explained(tmp_path: Path):
    with pytest.raises(ConfigError, match="--max-size: not a size: 'much'"):
        remove_files(str(tmp_path), "much")
    with pytest.raises(ConfigError, match="nowhere is not a directory"):
        list_files(str(tmp_path / "nowhere"))
