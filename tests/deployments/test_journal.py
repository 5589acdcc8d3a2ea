"""What is left of a stream after any loss, and what the client sees of the rest."""

from dataclasses import replace

import pytest

from deployments.journal import EngineFailed, StreamJournal
from rtp_serve.engine.request import FinishReason, SequenceDelta
from rtp_serve.errors import ModelChanged
from tests.factories import make_request

REQUEST = make_request("r", n=3)
FIRST = SequenceDelta("r", 0, (5,), num_cached_tokens=2, fingerprint="fp")


def test_a_stream_without_a_token_starts_anew_with_any_model():
    assert StreamJournal(REQUEST).rest is REQUEST


def test_the_rest_has_what_was_emitted_and_leaves_out_what_has_ended():
    journal = StreamJournal(REQUEST)
    for delta in (
        FIRST,
        replace(FIRST, token_ids=(6, 7), fingerprint=""),
        SequenceDelta("r", 1, (8,), finish_reason=FinishReason.STOP, fingerprint="fp"),
    ):
        assert journal.take(delta) is delta
    expected = replace(REQUEST, emitted=((5, 6, 7), None, ()), fingerprint="fp")
    assert journal.rest == expected
    assert expected.indices == (0, 2)


def test_the_client_is_told_of_the_prompt_and_the_model_once_a_sequence():
    journal = StreamJournal(REQUEST)
    journal.take(FIRST)
    rest = journal.rest
    assert rest.emitted == ((5,), (), ())
    journal.follow(rest)
    again = journal.take(replace(FIRST, token_ids=(6,)))
    assert (again.token_ids, again.fingerprint, again.num_cached_tokens) == ((6,), "", 0)
    other = replace(FIRST, index=1)
    assert journal.take(other) is other


def test_nothing_is_noted_of_another_model_or_of_an_engines_end():
    journal = StreamJournal(REQUEST)
    journal.take(FIRST)
    rest = journal.rest
    with pytest.raises(ModelChanged, match="fp2"):
        journal.take(replace(FIRST, fingerprint="fp2"))
    with pytest.raises(EngineFailed, match="broke"):
        journal.take(SequenceDelta("r", 1, finish_reason=FinishReason.ABORT, error="broke"))
    assert journal.rest == rest


def test_what_came_after_the_rest_was_noted_is_not_repeated():
    journal = StreamJournal(REQUEST)
    journal.take(FIRST)
    rest = journal.rest
    journal.take(SequenceDelta("r", 0, (6, 7)))
    journal.take(SequenceDelta("r", 1, (8,), finish_reason=FinishReason.STOP))
    journal.follow(rest)
    assert journal.take(SequenceDelta("r", 0, (6,), fingerprint="fp")) is None
    news = journal.take(SequenceDelta("r", 0, (7, 9)))
    assert news is not None
    assert news.token_ids == (9,)
    assert journal.take(SequenceDelta("r", 1, (8,), finish_reason=FinishReason.STOP)) is None
    assert journal.rest.emitted == ((5, 6, 7, 9), None, ())


def test_other_tokens_than_the_client_has_are_no_continuation():
    journal = StreamJournal(REQUEST)
    journal.take(FIRST)
    rest = journal.rest
    journal.take(SequenceDelta("r", 0, (6, 7)))
    journal.follow(rest)
    with pytest.raises(EngineFailed, match="other tokens"):
        journal.take(SequenceDelta("r", 0, (6, 8)))
    assert journal.rest.emitted == ((5, 6, 7), (), ())
