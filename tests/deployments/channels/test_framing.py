import pytest

from deployments.channels.framing import FrameReader, WireError, frame


def test_frames_come_out_whole_however_the_bytes_were_cut():
    payloads = [b"", b"a", b"bc" * 300, b"d"]
    data = b"".join(frame(payload) for payload in payloads)
    for size in (1, 3, 7, len(data)):
        reader = FrameReader()
        found = []
        for start in range(0, len(data), size):
            found += reader.feed(data[start : start + size])
        assert found == payloads


def test_a_frame_over_the_limit_is_refused_before_its_bytes_arrive():
    reader = FrameReader(max_frame_bytes=10)
    assert list(reader.feed(frame(b"x" * 10))) == [b"x" * 10]
    with pytest.raises(WireError, match="limit is 10"):
        list(reader.feed((11).to_bytes(4, "little")))
