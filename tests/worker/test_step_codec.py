"""What ranks are told arrives as it was sent."""

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtp_serve.engine.output import ModelOutput, NewSequence, SchedulerOutput
from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.worker.step_codec import Drop, Execute, Message, Stop, decode, decode_output, encode

ids = st.integers(0, 2**31 - 1)
arrays = st.lists(ids, max_size=20).map(lambda tokens: np.array(tokens, np.int32))


def tuples_of(element: st.SearchStrategy[Any], size: int) -> st.SearchStrategy[Any]:
    return st.lists(element, min_size=size, max_size=size).map(tuple)


any_tuple: Callable[[Any], Any] = lambda element: st.lists(element, max_size=4).map(tuple)  # noqa: E731

sampling = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_p=st.floats(0.01, 1),
    logit_bias=st.dictionaries(ids, st.floats(-100, 100), max_size=3),
    bad_words=any_tuple(tuples_of(ids, 2)),
    stop=any_tuple(st.text(min_size=1, max_size=5)),
    seed=st.none() | st.integers(-(1 << 63), (1 << 64) - 1),
)
new_sequences = st.builds(
    NewSequence,
    seq_id=ids,
    token_ids=arrays,
    num_prompt_tokens=ids,
    block_ids=any_tuple(ids),
    sampling=sampling,
    seed=st.integers(0, (1 << 64) - 1),
    barred_token_ids=any_tuple(ids),
    version=ids,
)


@st.composite
def steps(draw: st.DrawFn) -> SchedulerOutput:
    num_seqs = draw(st.integers(0, 5))
    return SchedulerOutput(
        draw(ids),
        *(draw(tuples_of(ids, num_seqs)) for _ in range(3)),
        is_sampled=draw(tuples_of(st.booleans(), num_seqs)),
        new_block_ids=draw(tuples_of(any_tuple(ids), num_seqs)),
        new_seqs=draw(any_tuple(new_sequences)),
        finished_seq_ids=draw(any_tuple(ids)),
    )


def plain(value: Any) -> Any:
    """With arrays as lists of their dtype and elements, so that it can be compared."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    if isinstance(value, dict | tuple | list):
        entries = value.items() if isinstance(value, dict) else value
        return [type(value).__name__, *map(plain, entries)]
    if dataclasses.is_dataclass(value):
        return plain({each.name: getattr(value, each.name) for each in dataclasses.fields(value)})
    return value


@given(steps())
def test_a_step_arrives_as_it_was_sent(scheduled: SchedulerOutput):
    message = decode(encode(Execute(scheduled)))
    assert isinstance(message, Execute)
    assert plain(message.scheduled) == plain(scheduled)


@pytest.mark.parametrize("message", [Drop(3), Stop()])
def test_small_messages_arrive(message: Message):
    assert decode(encode(message)) == message


@given(arrays)
def test_an_answer_arrives(token_ids: Any):
    entry = TokenLogprobs(7, -0.5, 2, ((3, -0.25), (7, -0.5)))
    output = ModelOutput(token_ids, (None, entry), ((4, (entry,)),), ((5, "no numbers"),))
    assert plain(decode_output(encode(output))) == plain(output)


def test_other_arrays_are_refused():
    with pytest.raises(AssertionError, match="an array of int64"):
        encode(ModelOutput(np.array([1])))


def test_what_is_no_message_is_refused():
    with pytest.raises(msgspec.DecodeError):
        decode(b"\x91\x63")
