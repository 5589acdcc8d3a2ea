from rtp_serve.engine.request_log import RequestLog
from rtp_serve.routing.types import Prefilled, PrefillPoint
from tests.factories import make_request

POINT = PrefillPoint(3, 0, 0.1)


def test_a_request_waits_runs_and_has_ended_once():
    log = RequestLog()
    request = make_request("a")
    log.submitted(request)
    news = log.take()
    assert (news.waiting_ids, news.running_ids, news.num_decoding) == (("a",), (), 0)
    log.prefilled(request, POINT)
    news = log.take()
    assert (news.waiting_ids, news.running_ids, news.num_decoding) == ((), ("a",), 1)
    assert news.prefilled == (Prefilled("a", POINT),)
    log.sequence_ended("a")
    log.ended("a")
    news = log.take()
    assert (news.running_ids, news.prefilled, news.finished_ids) == ((), (), ("a",))
    assert log.take().finished_ids == ()


def test_a_request_ends_with_its_last_sequence_and_has_one_first_token():
    log = RequestLog()
    request = make_request("a", n=2)
    log.submitted(request)
    for _ in range(2):
        log.prefilled(request, POINT)
    log.sequence_ended("a")
    news = log.take()
    assert (news.running_ids, news.num_decoding, len(news.prefilled)) == (("a",), 1, 1)
    log.sequence_ended("a")
    assert log.take().finished_ids == ("a",)


def test_a_token_of_an_aborted_request_is_none_of_the_next_one_with_its_id():
    log = RequestLog()
    aborted, following = make_request("a"), make_request("a")
    log.submitted(aborted)
    log.ended("a")
    log.submitted(following)
    log.prefilled(aborted, POINT)
    news = log.take()
    assert (news.waiting_ids, news.prefilled, news.finished_ids) == (("a",), (), ("a",))


def test_what_was_submitted_before_is_not_told():
    log = RequestLog()
    log.take()
    log.prefilled(make_request("a"), POINT)
    log.sequence_ended("a")
    log.ended("a")
    assert not log.has_news
    assert log.take().finished_ids == ()


def test_only_what_happens_is_news():
    log = RequestLog()
    assert log.has_news  # of an engine that has reported nothing
    log.take()
    assert not log.has_news
    log.submitted(make_request("a"))
    assert log.has_news
