from pathlib import Path

from rtp_serve.kv_store.available_memory import available_bytes

MEMINFO = "MemTotal:       24000000 kB\nMemFree:  100 kB\nMemAvailable:   8000 kB\n"


def write_meminfo(root: Path) -> Path:
    path = root / "meminfo"
    path.write_text(MEMINFO)
    return path


def write_group(directory: Path, **files: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return directory


def test_without_a_container_the_machine_s_memory_counts(tmp_path: Path):
    assert available_bytes(write_meminfo(tmp_path), tmp_path / "absent") == 8000 << 10


def test_a_container_without_a_limit_is_none(tmp_path: Path):
    root = write_group(tmp_path / "group", memory__max="max\n", memory__current="5\n")
    assert available_bytes(write_meminfo(tmp_path), root) == 8000 << 10


def test_what_is_left_in_a_container_counts_with_idle_pages_of_files(tmp_path: Path):
    root = write_group(
        tmp_path / "group",
        memory__max="5000000\n",
        memory__current="4000000\n",
        memory__stat="anon 7\ninactive_file 300000\n",
    )
    assert available_bytes(write_meminfo(tmp_path), root) == 1_300_000


def test_a_container_of_the_older_kind_counts_as_well(tmp_path: Path):
    write_group(
        tmp_path / "memory",
        memory__limit_in_bytes="5000000",
        memory__usage_in_bytes="4000000",
        memory__stat="total_inactive_file 200000",
    )
    assert available_bytes(write_meminfo(tmp_path), tmp_path) == 1_200_000


def test_a_container_above_its_limit_has_nothing_left(tmp_path: Path):
    root = write_group(tmp_path / "group", memory__max="10", memory__current="20")
    assert available_bytes(write_meminfo(tmp_path), root) == 0


def test_what_nobody_tells_is_not_there(tmp_path: Path):
    assert available_bytes(tmp_path / "absent", tmp_path) == 0


def test_this_machine_has_some():
    assert available_bytes() > 0
