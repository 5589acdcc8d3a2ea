from rtp_serve.kv_cache.block import BlockHash
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.ideal import ideal
from rtp_serve.simulation.requests import Trace, TracedRequest

BLOCKS = (BlockHash(b"a"), BlockHash(b"b"))
TRACE = Trace("t", 16, tuple(TracedRequest(float(at), 40, 1, BLOCKS) for at in range(2)))
MODEL = EngineModel(prefill_base_s=0.0, prefill_token_s=1.0, prefill_attention_s=0.0)


def test_each_block_is_computed_once():
    found = ideal(TRACE, MODEL)
    assert (found.prefill_s, found.hit_rate) == (40 + 8, 32 / 80)


def test_what_is_skipped_fills_the_cache():
    found = ideal(TRACE, MODEL, skip=0.5)
    assert (found.prefill_s, found.hit_rate) == (8, 32 / 40)
