"""Several versions of a model over one KV cache."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from rtp_serve.engine.output import ModelOutput, NewSequence, SchedulerOutput
from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.worker.shares import join, share_of
from tests.checkpoints import tiny_config, write_checkpoint
from tests.worker.driver import DrivenSequence, Driver
from tests.worker.engines import make_prompt, make_runner, make_worker

SAMPLINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, logprobs=2),
    SamplingParams(temperature=0.8, repetition_penalty=1.2, prompt_logprobs=1),
]


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    """One model with two sets of weights."""
    config = tiny_config("Qwen3ForCausalLM")
    return [write_checkpoint(tmp_path / str(seed), config, seed=seed) for seed in range(2)]


def make_sequences(*versions: int) -> list[DrivenSequence]:
    return [
        DrivenSequence(
            i, make_prompt(7 * i + 1, i), SAMPLINGS[i % 3], 100 + i, num_output=12, version=version
        )
        for i, version in enumerate(versions)
    ]


@pytest.mark.parametrize("chunk", [4, 1 << 30])
def test_sequences_of_two_versions_in_a_step_come_out_as_if_alone(
    checkpoints: list[Path], chunk: int
):
    mixed = make_sequences(0, 1, 1, 0, 1, 0)
    Driver(make_worker(*checkpoints), chunk).run(*mixed)
    for sequence, alone in zip(mixed, make_sequences(0, 1, 1, 0, 1, 0), strict=True):
        Driver(make_runner(checkpoints[alone.version])).run(alone)
        assert sequence.output == alone.output
        assert sequence.logprobs == alone.logprobs
        assert sequence.prompt_logprobs == alone.prompt_logprobs
    assert len({tuple(each.output) for each in mixed}) == len(mixed)


def test_a_dropped_version_is_freed_and_the_other_goes_on(checkpoints: list[Path]):
    worker = make_worker(*checkpoints)
    old, new = make_sequences(0, 1)
    driver = Driver(worker)
    driver.step([old, new])
    model = weakref.ref(worker._versions[0].runner._model)
    driver.run(old)
    worker.drop(0)
    gc.collect()
    assert model() is None
    driver.run(new)
    (_, alone) = make_sequences(0, 1)
    Driver(make_runner(checkpoints[1])).run(alone)
    assert new.output == alone.output


def test_a_share_has_what_is_its_versions_and_joining_restores_the_order():
    new = [
        NewSequence(seq_id, np.arange(3, dtype=np.int32), 3, (), SAMPLINGS[0], 0, version=version)
        for seq_id, version in ((7, 1), (8, 0))
    ]
    scheduled = SchedulerOutput(
        step=5,
        seq_ids=(1, 2, 7, 8),
        num_computed_tokens=(9, 4, 0, 0),
        num_scheduled_tokens=(1, 2, 3, 3),
        is_sampled=(True, False, True, True),
        new_block_ids=((), (4,), (5,), (6,)),
        new_seqs=tuple(new),
        finished_seq_ids=(3, 4, 8),
    )
    shares = [share_of(0, {1, 4, 8}, scheduled), share_of(1, {2, 3}, scheduled)]
    assert [share.indices for share in shares] == [(0, 3), (1, 2)]
    assert [share.scheduled.finished_seq_ids for share in shares] == [(4, 8), (3,)]
    assert shares[1].scheduled.new_block_ids == ((4,), (5,))
    entry = TokenLogprobs(70, -1.0, 1)
    outputs = [
        ModelOutput(np.array([10, 80], np.int32), errors=((8, "bad"),)),
        ModelOutput(np.array([70], np.int32), (entry,), ((2, (entry,)),)),
    ]
    joined = join(scheduled, shares, outputs)
    assert joined.token_ids.tolist() == [10, 70, 80]
    assert joined.logprobs == (None, entry, None)
    assert joined.prompt_logprobs == ((2, (entry,)),)
    assert joined.errors == ((8, "bad"),)


@pytest.mark.parametrize("num_kept", [1, 35, 36, 47])
@pytest.mark.parametrize("num_versions", [1, 2])
def test_a_sequence_that_begins_with_a_copied_block_comes_out_as_if_alone(
    checkpoints: list[Path], num_versions: int, num_kept: int
):
    """Its block has what the other sequence wrote behind the common beginning, too."""
    worker = make_worker(*checkpoints[:num_versions])
    version = num_versions - 1
    first = DrivenSequence(0, make_prompt(48, 0), num_output=1, version=version)
    Driver(worker).run(first)
    prompt = first.prompt[:num_kept] + make_prompt(9, 1)
    copied = num_kept // 16
    new = NewSequence(
        1,
        np.array(prompt, np.int32),
        len(prompt),
        tuple(range(1, copied + 1)),
        SAMPLINGS[1],
        5,
        version=version,
    )
    output = worker.execute(
        SchedulerOutput(
            step=2,
            seq_ids=(1,),
            num_computed_tokens=(num_kept,),
            num_scheduled_tokens=(9,),
            is_sampled=(True,),
            new_block_ids=((7, 8),),
            new_seqs=(new,),
            finished_seq_ids=(0,),
            block_copies=((copied + 1, 9), (9, 7)),
        )
    )
    alone = DrivenSequence(1, prompt, SAMPLINGS[1], 5, num_output=1)
    Driver(make_runner(checkpoints[version])).run(alone)
    assert output.token_ids.tolist() == alone.output
    assert list(output.logprobs) == alone.logprobs
