import pytest

from rtp_serve.simulation.requests import Served, TracedRequest
from rtp_serve.simulation.served_table import ServedTable

REQUESTS = (TracedRequest(1.0, 500, 11, ()), TracedRequest(2.5, 300, 1, ()))


def test_rows_are_by_arrival_in_whatever_order_requests_end():
    table = ServedTable()
    for each in REQUESTS:
        table.come(each)
    table.end(1, Served(REQUESTS[1], is_rejected=True))
    table.end(0, Served(REQUESTS[0], ttft_s=0.5, e2e_s=1.5, num_cached_tokens=32))
    assert len(table) == 2
    assert table.arrival_s.tolist() == [1.0, 2.5]
    assert table.num_tokens.tolist() == [500, 300]
    assert table.ttft_s.tolist() == [0.5, 0.0]
    assert table.num_cached_tokens.tolist() == [32, 0]
    assert table.is_rejected.tolist() == [False, True]
    assert table.span_s == 1.5


def test_gaps_are_those_of_the_rows():
    served = [Served(REQUESTS[0], 0.5, 1.5), Served(REQUESTS[1], 0.25, 0.25)]
    table = ServedTable.of(served)
    assert table.itl_s.tolist() == pytest.approx([each.itl_s for each in served])
