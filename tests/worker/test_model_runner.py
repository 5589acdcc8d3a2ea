"""The runner on a tiny model: exactness, per-sequence state, log-probabilities, failures."""

from pathlib import Path

import pytest
import torch

import rtp_kernels
from rtp_serve.clock import WallClock
from rtp_serve.config.engine import EngineConfig, WeightStoreConfig
from rtp_serve.engine.output import SchedulerOutput
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.parallel.collectives import Alone
from rtp_serve.worker.executor import InProcessExecutor
from rtp_serve.worker.rank_worker import RankWorker
from tests.checkpoints import random_tensors, tiny_config, write_checkpoint
from tests.worker.driver import DrivenSequence, Driver
from tests.worker.engines import (
    all_logits,
    make_cache,
    make_prompt,
    make_runner,
    whole_prompt,
)

ARCHITECTURES = ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]
SAMPLINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.2),
    SamplingParams(temperature=1.2, top_k=20, frequency_penalty=0.4),
    SamplingParams(temperature=0.0, presence_penalty=1.0, bad_words=((5,), (7, 8))),
    SamplingParams(temperature=1.0, min_p=0.05, logprobs=2),
]


def make_sequences(num_output: int = 20) -> list[DrivenSequence]:
    lengths = (1, 37, 16, 70, 5, 33)
    return [
        DrivenSequence(seq_id, make_prompt(length, seq_id), sampling, 100 + seq_id, num_output)
        for seq_id, (length, sampling) in enumerate(zip(lengths, SAMPLINGS, strict=True))
    ]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module", params=ARCHITECTURES)
def directory(
    request: pytest.FixtureRequest, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    config = tiny_config(request.param, torch_dtype=str(dtype).removeprefix("torch."))
    return write_checkpoint(tmp_path_factory.mktemp("model"), config, dtype=dtype)


@pytest.fixture(scope="module")
def alone(directory: Path) -> list[list[int]]:
    """Each sequence's output when it has the runner to itself."""
    sequences = make_sequences()
    for sequence in sequences:
        Driver(make_runner(directory)).run(sequence)
    return [sequence.output for sequence in sequences]


@pytest.mark.parametrize("chunk", [1 << 30, 7, 1])
def test_a_sequence_is_the_same_in_company_and_in_chunks(
    directory: Path, alone: list[list[int]], chunk: int
):
    sequences = make_sequences()
    Driver(make_runner(directory), chunk).run(*sequences)
    assert [sequence.output for sequence in sequences] == alone


def test_a_forgotten_sequence_comes_back_the_same(directory: Path, alone: list[list[int]]):
    sequences = make_sequences()
    driver = Driver(make_runner(directory), chunk=16)
    for step in range(12):
        driver.step([sequence for sequence in sequences if not sequence.is_finished])
        if step % 4 == 3:
            driver.forget(sequences[step // 4])
    driver.run(*sequences)
    assert [sequence.output for sequence in sequences] == alone


def test_rows_are_reused_by_many_generations_of_sequences(tmp_path: Path):
    runner = make_runner(write_checkpoint(tmp_path), num_blocks=600)
    driver = Driver(runner)
    first = DrivenSequence(0, make_prompt(40, 1))
    driver.run(first)
    for generation in range(1, 6):
        others = [
            DrivenSequence(100 * generation + i, make_prompt(10 * i + 1, i)) for i in range(15)
        ]
        again = DrivenSequence(generation, first.prompt)
        driver.run(*others, again)
        assert again.output == first.output


def test_prompt_logprobs_are_those_of_one_forward_pass(tmp_path: Path):
    runner = make_runner(write_checkpoint(tmp_path))
    prompt = make_prompt(150)
    model = runner._model
    with torch.inference_mode():
        hidden = model.forward(whole_prompt(prompt), make_cache(model.config)).last
        expected = all_logits(model, hidden).log_softmax(dim=-1)
    for chunk in (1 << 30, 13):
        wanted = SamplingParams(temperature=0.0, logprobs=0, prompt_logprobs=3)
        sequence = DrivenSequence(chunk, prompt, wanted, num_output=1)
        Driver(runner, chunk).run(sequence)
        entries = sequence.prompt_logprobs
        assert [entry.token_id for entry in entries] == prompt[1:]
        values = torch.tensor([entry.logprob for entry in entries])
        torch.testing.assert_close(values, expected[torch.arange(149), prompt[1:]])
        best = expected[:-1].topk(3).indices.tolist()
        assert [[token_id for token_id, _ in entry.top] for entry in entries] == best
        assert sequence.logprobs[0].logprob == pytest.approx(float(expected[-1].max()), abs=1e-5)


def test_log_probabilities_are_absent_where_nobody_asks(tmp_path: Path):
    driver = Driver(make_runner(write_checkpoint(tmp_path)))
    plain = DrivenSequence(1, make_prompt(5))
    asking = DrivenSequence(2, make_prompt(5), SamplingParams(temperature=0.0, logprobs=0))
    assert driver.step([plain]).logprobs == ()
    entries = driver.step([plain, asking]).logprobs
    assert entries[0] is None
    assert entries[1] is not None
    assert entries[1].top == ()


def test_barred_tokens_wait_for_min_tokens(tmp_path: Path):
    runner = make_runner(write_checkpoint(tmp_path))
    prompt = make_prompt(9)
    free = DrivenSequence(1, prompt)
    Driver(runner).run(free)
    stop = free.output[2]
    waiting = SamplingParams(temperature=0.0, min_tokens=6)
    sequence = DrivenSequence(2, prompt, waiting, num_output=12, barred=(stop,))
    Driver(runner).run(sequence)
    assert sequence.output[:2] == free.output[:2]
    assert stop not in sequence.output[:6]


@pytest.mark.parametrize("prompt_logprobs", [None, 0])
def test_a_sequence_without_numbers_fails_and_the_others_go_on(
    tmp_path: Path, prompt_logprobs: int | None
):
    config = tiny_config()
    tensors = random_tensors(config)
    tensors["model.embed_tokens.weight"][250] = torch.nan
    runner = make_runner(write_checkpoint(tmp_path, config, tensors))
    bad_word = SamplingParams(temperature=0.0, bad_words=((250,),))
    alone = DrivenSequence(0, make_prompt(20, vocab_size=250), bad_word)
    Driver(runner).run(alone)
    well = DrivenSequence(1, alone.prompt, bad_word)
    sampling = SamplingParams(temperature=0.0, prompt_logprobs=prompt_logprobs)
    ill = DrivenSequence(2, [5, 250, *make_prompt(20)], sampling)
    Driver(runner, chunk=8).run(ill, well)
    assert "not finite" in ill.error
    assert ill.output == []
    assert well.error == ""
    assert well.output == alone.output


def test_a_step_may_only_bring_news_of_the_finished(tmp_path: Path):
    runner = make_runner(write_checkpoint(tmp_path))
    driver = Driver(runner)
    driver.step([DrivenSequence(1, make_prompt(5))])
    goodbye = SchedulerOutput(2, (), (), (), (), (), finished_seq_ids=(1, 77))
    output = runner.execute(goodbye)
    assert output.token_ids.tolist() == []
    runner.check_invariants()
    driver._known.clear()
    driver.step([DrivenSequence(1, make_prompt(5))])


def test_the_executor_runs_a_step_with_its_own_thread_count(tmp_path: Path):
    before = torch.get_num_threads()
    write_checkpoint(tmp_path)
    store = WeightStoreConfig(enable=False)
    config = EngineConfig(model=str(tmp_path), num_threads=1, weight_store=store)
    worker = RankWorker(config, Alone(), WallClock())
    worker.load()
    executor = InProcessExecutor(worker)
    expected = DrivenSequence(0, make_prompt(5))
    Driver(make_runner(tmp_path)).run(expected)
    sequence = DrivenSequence(1, make_prompt(5))
    driver = Driver(make_runner(tmp_path))
    try:
        while not sequence.is_finished:
            scheduled = driver._schedule([sequence])
            driver._update([sequence], scheduled, executor.submit(scheduled).result())
        assert torch.get_num_threads() == rtp_kernels.num_threads() == 1
    finally:
        torch.set_num_threads(before)
        rtp_kernels.set_num_threads(before)
    executor.shutdown()
    assert sequence.output == expected.output
