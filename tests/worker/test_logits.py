"""What a request's wishes do to a row of logits."""

from typing import Any

import numpy as np
import pytest

from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.worker.logits import adjust
from rtp_serve.worker.tracked_sequence import TrackedSequence

LOGITS = np.array([2.0, -2.0, 1.0, 0.5, -1.0, 0.0], np.float32)


def tracked(num_prompt_tokens: int = 1, barred: tuple[int, ...] = (), **wishes: Any):
    return TrackedSequence(0, num_prompt_tokens, SamplingParams(**wishes), 0, barred)


def adjusted(token_ids: tuple[int, ...] = (0, 1, 3), *, logits: np.ndarray = LOGITS, **wishes: Any):
    sequence, row = tracked(**wishes), logits.copy()
    assert sequence.has_adjustments
    replaced = adjust(row, sequence, np.array(token_ids, np.int32))
    result = row.tolist()
    replaced.restore(row)
    assert np.array_equal(row, logits, equal_nan=True)
    return result


def test_repetition_penalty_counts_prompt_and_output_once_each():
    assert adjusted((0, 1, 1, 3), repetition_penalty=2.0) == [1.0, -4.0, 1.0, 0.25, -1.0, 0.0]


def test_presence_penalty_counts_a_generated_token_once():
    assert adjusted((0, 1, 1, 3), presence_penalty=1.5) == [2.0, -3.5, 1.0, -1.0, -1.0, 0.0]


def test_frequency_penalty_counts_every_time():
    assert adjusted((0, 1, 1, 3), frequency_penalty=0.5) == [2.0, -3.0, 1.0, 0.0, -1.0, 0.0]


def test_logit_bias_is_added():
    assert adjusted(logit_bias={1: 5.0, 5: -100.0}) == [2.0, 3.0, 1.0, 0.5, -1.0, -100.0]


@pytest.mark.parametrize(
    ("words", "barred"),
    [
        (((4,),), [4]),
        (((3, 2),), [2]),
        (((1, 3, 0),), [0]),
        (((0, 1, 3, 5),), [5]),
        (((1, 2),), []),
        (((9, 0, 1, 3, 5),), []),
        (((3, 2), (4,)), [2, 4]),
    ],
)
def test_a_bad_words_last_token_is_barred_after_the_others(
    words: tuple[tuple[int, ...], ...], barred: list[int]
):
    result = adjusted((0, 1, 3), bad_words=words)
    assert np.flatnonzero(np.isneginf(result)).tolist() == barred


def test_barred_tokens_are_free_once_min_tokens_are_out():
    assert adjusted((0, 1), min_tokens=2, barred=(2, 3))[2:4] == [-np.inf, -np.inf]
    assert adjusted((0, 1, 3), min_tokens=2, barred=(2, 3)) == LOGITS.tolist()


def test_all_wishes_act_one_after_the_other_and_are_undone():
    result = adjusted(
        (0, 1, 1, 3),
        logit_bias={1: 5.0, 2: 1.0},
        bad_words=((3, 2), (0,)),
        repetition_penalty=2.0,
        frequency_penalty=0.5,
        presence_penalty=0.25,
    )
    assert result == [-np.inf, 0.25, -np.inf, -0.5, -1.0, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_barred_logit_that_is_no_number_stays_none(bad: float):
    logits = LOGITS.copy()
    logits[2] = bad
    assert np.isnan(adjusted(logits=logits, bad_words=((2,),))[2])


def test_a_request_without_wishes_has_no_adjustments():
    assert not tracked(temperature=0.7, top_p=0.5, barred=(2,)).has_adjustments
    assert not tracked(min_tokens=2).has_adjustments
