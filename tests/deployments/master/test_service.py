"""The Master in bytes."""

import logging
from random import Random

import pytest

from deployments.channels.framing import WireError
from deployments.master.service import MAX_SNAPSHOT_BLOCKS, WARM_UP_S, MasterService
from deployments.master.wire import (
    Ended,
    SnapshotWanted,
    decode_heard,
    decode_part,
    decode_ruling,
    decode_standing,
    encode,
)
from rtp_serve.clock import VirtualClock
from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.routing.block_stream import SnapshotPage
from rtp_serve.routing.report import WorkerReport
from rtp_serve.routing.types import Outcome, RequestFeatures, WorkerId
from tests.deployments.master.played_master import BLOCKS, CONFIG, PlayedMaster, make_report


def features(name: str, blocks: tuple[BlockHash, ...] = BLOCKS[:4]) -> bytes:
    return encode(RequestFeatures(name, 16 * len(blocks) + 1, blocks, 0.0))


def test_a_new_worker_s_first_report_is_enough():
    service = PlayedMaster().service
    heard = decode_heard(service.report(encode(make_report("a", BLOCKS[:4]))))
    assert (heard.instance, heard.needs_snapshot) == ("first", False)
    service.report(encode(make_report("b")))
    ruling = decode_ruling(service.schedule(features("r")))
    assert (ruling.outcome, ruling.worker_id) == (Outcome.ROUTED, "a")


def test_a_gap_is_answered_with_the_wish_for_a_snapshot_which_closes_it():
    service = PlayedMaster().service
    late = make_report("a", BLOCKS[:4], base_version=7)
    assert decode_heard(service.report(encode(late))).needs_snapshot
    page = SnapshotPage("a", 1, 8, 0, 1, BLOCKS[:4])
    heard = decode_heard(service.report(encode(WorkerReport((), (page,), late.status))))
    assert not heard.needs_snapshot
    (worker,) = decode_standing(service.figures()).workers
    assert worker.num_cached_blocks == 4


def test_nobody_is_sent_to_the_first_worker_that_reports_before_the_others_had_time_to():
    clock = VirtualClock()
    service = MasterService(CONFIG, clock, Random(1), "young")
    service.report(encode(make_report("a")))
    assert decode_ruling(service.schedule(features("r"))).outcome is Outcome.NO_WORKER
    assert not decode_part(service.snapshot(encode(SnapshotWanted()))).is_ready
    clock.advance(WARM_UP_S)
    assert decode_ruling(service.schedule(features("r"))).worker_id == "a"
    assert decode_part(service.snapshot(encode(SnapshotWanted()))).is_ready


def test_a_name_that_is_in_flight_is_not_booked_twice():
    service = PlayedMaster().service
    service.report(encode(make_report("a")))
    assert decode_ruling(service.schedule(features("r"))).outcome is Outcome.ROUTED
    assert decode_ruling(service.schedule(features("r"))).outcome is Outcome.NO_WORKER
    service.ended(encode(Ended(lost=("r", "unknown"))))
    assert decode_standing(service.figures()).num_in_flight == 0
    assert decode_ruling(service.schedule(features("r"))).outcome is Outcome.ROUTED


def test_a_snapshot_has_what_has_changed_and_no_more_than_a_bound_allows():
    service = PlayedMaster().service
    many = tuple(BlockHash(number.to_bytes(32, "big")) for number in range(MAX_SNAPSHOT_BLOCKS))
    for name, blocks in (("a", many), ("b", BLOCKS[:2]), ("c", BLOCKS)):
        service.report(encode(make_report(name, blocks)))
    first = decode_part(service.snapshot(encode(SnapshotWanted()))).snapshot
    assert [each.status.worker_id for each in first.workers] == ["a", "b", "c"]
    assert [each.holder for each in first.blocks] == ["a"]
    known = {"a": (1, 1)}
    second = decode_part(service.snapshot(encode(SnapshotWanted(known=known)))).snapshot
    assert {each.holder: set(each.hashes) for each in second.blocks} == {
        "b": set(BLOCKS[:2]),
        "c": set(BLOCKS),
    }
    known |= {"b": (1, 1), "c": (1, 1)}
    assert not decode_part(service.snapshot(encode(SnapshotWanted(known=known)))).snapshot.blocks
    wanted = SnapshotWanted(with_blocks=False)
    assert not decode_part(service.snapshot(encode(wanted))).snapshot.blocks


def test_a_worker_that_leaves_or_stays_silent_is_gone():
    master = PlayedMaster()
    for name in ("a", "b"):
        master.service.report(encode(make_report(name)))
    master.service.ended(encode(Ended(left=(WorkerId("a"), WorkerId("unknown")))))
    assert [each.worker_id for each in decode_standing(master.service.figures()).workers] == ["b"]
    master.clock.advance(2 * CONFIG.worker_silence_s)
    master.service.expire()
    (silent,) = decode_standing(master.service.figures()).workers
    assert not silent.is_usable
    master.clock.advance(10 * CONFIG.worker_silence_s)
    master.service.expire()
    assert not decode_standing(master.service.figures()).workers


def test_every_decision_is_logged_with_its_numbers_and_kept(caplog: pytest.LogCaptureFixture):
    service = PlayedMaster().service
    for name in ("a", "b"):
        service.report(encode(make_report(name)))
    with caplog.at_level(logging.DEBUG, "rtp_serve.master"):
        service.schedule(features("r"))
    (line,) = caplog.messages
    assert line.startswith("r: routed, ")
    assert "a: cost " in line
    assert "b: cost " in line
    (kept,) = decode_standing(service.figures()).decisions
    assert (kept.request_id, kept.outcome) == ("r", "routed")
    assert {each.worker_id for each in kept.candidates} == {"a", "b"}


def test_bytes_that_are_none_of_ours_are_an_error():
    with pytest.raises(WireError):
        PlayedMaster().service.schedule(b"\x80\x04nonsense")
