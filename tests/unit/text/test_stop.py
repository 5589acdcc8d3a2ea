from hypothesis import given
from hypothesis import strategies as st

from rtp_serve.text.stop import StopChecker


def run(pieces: list[str], stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    checker = StopChecker(stop, include)
    out = "".join(checker.push(piece) for piece in pieces)
    return out + checker.finish(), checker.matched


def oracle(text: str, stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """Read letter by letter; the longest stop string that has just ended wins."""
    for end in range(1, len(text) + 1):
        ended = [s for s in stop if text[:end].endswith(s)]
        if ended:
            longest = max(ended, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


LETTERS = st.text("ab", min_size=1, max_size=5)


@given(
    pieces=st.lists(st.text("abc", max_size=6), max_size=8),
    stop=st.lists(LETTERS, max_size=3).map(tuple),
    include=st.booleans(),
)
def test_the_cut_of_the_text_makes_no_difference(
    pieces: list[str], stop: tuple[str, ...], include: bool
):
    assert run(pieces, stop, include) == oracle("".join(pieces), stop, include)


@given(pieces=st.lists(st.text("abc", max_size=6), max_size=8), stop=LETTERS)
def test_only_what_may_begin_a_stop_string_is_held_back(pieces: list[str], stop: str):
    checker = StopChecker((stop,))
    text = out = ""
    for piece in pieces:
        text += piece
        out += checker.push(piece)
        held = text[len(out) :]
        if checker.matched is None:
            assert stop.startswith(held)
            assert len(held) < len(stop)


def test_nothing_comes_after_the_match():
    checker = StopChecker(("END",))
    assert [checker.push(piece) for piece in ("one E", "N", "D two", " three")] == [
        "one ",
        "",
        "",
        "",
    ]
    assert checker.matched == "END"
    assert checker.finish() == ""


def test_a_false_start_is_given_back():
    checker = StopChecker(("\n\nUser:",))
    assert checker.push("Hi\n\n") == "Hi"
    assert checker.push("there") == "\n\nthere"
