"""The offline façade on the real model."""

import signal
from pathlib import Path
from typing import Any

import pytest

from rtp_serve import LLM, SamplingParams
from rtp_serve.engine.request import FinishReason
from rtp_serve.errors import ConfigError, InvalidRequest, ModelNotFound, ReloadRefused
from tests.checkpoints import write_checkpoint

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("smollm2-135m-instruct", max_model_len=512, cache={"memory": "64MiB"})


def chat(llm: LLM, text: str, sampling: SamplingParams = GREEDY) -> str:
    return llm.chat([{"role": "user", "content": text}], sampling)[0].text


def test_it_answers_sensibly(llm: LLM):
    assert "4" in chat(llm, "What is 2+2?")
    assert "Paris" in chat(llm, "What is the capital of France? Answer with the city's name.")


def test_outputs_are_in_the_order_of_the_prompts(llm: LLM):
    prompts = ["The sky is", "Water is", "One, two, three,"]
    together = llm.generate(prompts, GREEDY)
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in prompts]
    assert [output.text for output in together] == [output.text for output in alone]
    assert "four" in together[2].text


def test_token_ids_are_a_prompt_too(llm: LLM):
    token_ids = llm.tokenizer.encode("One, two, three,")
    (output,) = llm.generate(token_ids, GREEDY)
    assert output.prompt_token_ids == tuple(token_ids)
    assert output.text == llm.generate("One, two, three,", GREEDY)[0].text


def test_a_stop_string_ends_the_text_before_it(llm: LLM):
    sampling = SamplingParams(temperature=0.0, max_tokens=24, stop=("five",))
    (output,) = llm.generate("One, two, three,", sampling)
    assert "four" in output.text
    assert "five" not in output.text
    assert output.completions[0].finish_reason is FinishReason.STOP


def test_n_sequences_share_a_prompt_and_differ(llm: LLM):
    sampling = SamplingParams(n=4, seed=1, max_tokens=16)
    (output,) = llm.generate("Once upon a time", sampling)
    assert len({completion.token_ids for completion in output.completions}) > 1
    again = llm.generate("Once upon a time", sampling)[0]
    assert again.completions == output.completions


def test_prompt_logprobs_cover_the_prompt(llm: LLM):
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, logprobs=1)
    (output,) = llm.generate("One, two, three, four", sampling)
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None
    last = output.prompt_logprobs[-1]
    assert last is not None
    assert last.token_id == output.prompt_token_ids[-1]
    assert last.logprob > -1.0, "'four' after 'three,' is likely"


def test_the_second_turn_hits_the_prefix_cache(llm: LLM):
    text = "Tell me about the history of the city of Rome and its many famous old buildings. " * 3
    chat(llm, text)
    (output,) = llm.chat([{"role": "user", "content": text}], GREEDY)
    assert output.num_cached_tokens >= 16


def test_streaming_gives_the_same_text(llm: LLM):
    pieces = list(llm.stream("One, two, three,", GREEDY))
    assert "".join(pieces) == llm.generate("One, two, three,", GREEDY)[0].text
    assert len(pieces) > 5


def test_closing_a_stream_frees_everything(llm: LLM):
    stream = llm.stream("One, two, three,", GREEDY)
    next(stream)
    stream.close()
    stats = llm._core.stats
    assert (stats.num_running, stats.num_free_blocks) == (0, stats.num_blocks)


def test_a_wrong_prompt_runs_nothing(llm: LLM):
    with pytest.raises(InvalidRequest):
        llm.generate(["fine", [10**9]], GREEDY)
    with pytest.raises(InvalidRequest, match="got float"):
        llm.generate([1.5], GREEDY)  # type: ignore[list-item]
    assert not llm._core.has_work


def test_an_interrupted_call_leaves_the_model_whole(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C within a step whose prompt blocks the next call would find in the prefix cache."""
    prompt = "Before the interrupt there was a prompt of a few blocks. " * 4
    model = llm._core._executor._worker._worker._versions[0].runner._model
    compute = model.next_greedy

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return compute(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model, "next_greedy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(prompt, GREEDY)
    llm._core.check_invariants()
    (output,) = llm.generate(prompt, GREEDY)
    llm._core._cache.pool.clear_cache()
    assert output.text == llm.generate(prompt, GREEDY)[0].text
    assert output.num_cached_tokens > 0, "the step was finished before the interrupt"


def test_a_stream_is_of_one_sequence(llm: LLM):
    with pytest.raises(InvalidRequest, match="n must be 1 in a stream, got 2"):
        next(llm.stream("One, two, three,", SamplingParams(n=2)))
    assert not llm._core.has_work


def test_several_conversations_at_once(llm: LLM):
    conversations = [[{"role": "user", "content": text}] for text in ("What is 2+2?", "Say hi.")]
    outputs = llm.chat(conversations, GREEDY)
    assert outputs[0].text == chat(llm, "What is 2+2?")


def test_wrong_options_start_nothing():
    with pytest.raises(ConfigError, match=r"max_model_length.*did you mean 'max_model_len'"):
        LLM("smollm2-135m-instruct", max_model_length=5)
    with pytest.raises(ModelNotFound, match="smollm2-135m-instruct"):
        LLM("smollm2-135m-instrukt")


def test_calls_while_a_stream_is_open_mix_nothing_up(llm: LLM):
    expected = llm.generate("One, two, three,", GREEDY)[0].text
    stream = llm.stream("One, two, three,", GREEDY)
    pieces = [next(stream)]
    assert "4" in chat(llm, "What is 2+2?")
    other = list(llm.stream("One, two, three,", GREEDY))
    pieces += stream
    assert "".join(pieces) == "".join(other) == expected


def test_weights_that_are_not_of_this_model_are_refused(llm: LLM, tmp_path: Path):
    llm.reload()
    with pytest.raises(ReloadRefused, match="vocab_size is 256"):
        llm.reload(str(write_checkpoint(tmp_path)))
    assert chat(llm, "Say hi.") == chat(llm, "Say hi.")
