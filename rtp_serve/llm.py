"""The offline façade: a model in this process, no server, no thread.

llm = LLM("smollm2-135m-instruct")
outputs = llm.generate(["The sky is", "Water is"], SamplingParams(max_tokens=16))
"""

import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Self

from tqdm import tqdm

from rtp_serve.build import build_core
from rtp_serve.config.engine import EngineConfig, ModelSource
from rtp_serve.config.parse import parse_config
from rtp_serve.engine.request import (
    NOTHING_CACHED,
    FinishReason,
    Request,
    SequenceDelta,
    TokenLogprobs,
)
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.errors import InvalidRequest, RtpServeError
from rtp_serve.interrupt import deferred_interrupt
from rtp_serve.loader.hub import resolve
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.stream import TextStream
from rtp_serve.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
"""Text, or token ids."""

Message = Mapping[str, Any]
"""`{"role": …, "content": …}`."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated sequence."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token when asked for."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt's finished sequences."""

    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    num_cached_tokens: int
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    error: str = ""
    """What went wrong, where a completion's finish_reason is ERROR."""

    num_host_tokens: int = 0
    """Of the cached ones, what the node's memory gave and not the device."""

    num_disk_tokens: int = 0
    """Of the cached ones, what the disk gave."""

    num_remote_tokens: int = 0
    """Of the cached ones, what other nodes gave."""

    @property
    def text(self) -> str:
        """The first sequence's text."""
        return self.completions[0].text


class LLM:
    """A loaded model, for one thread. Calls may be made while a stream is open; both go on.

    With `kv_store` it holds threads and the node's store until `close`, or the end of a `with`.
    """

    def __init__(self, model: str = EngineConfig().model, **options: Any) -> None:
        """`options` are EngineConfig's fields, sub-configurations as mappings.

        Raises ConfigError, ModelNotFound or CheckpointError.
        """
        config = parse_config(EngineConfig, {"model": model, **options}, "LLM")
        directory = resolve(config.model, config.revision)
        self.tokenizer = Tokenizer.from_directory(directory)
        self._template = ChatTemplate.from_directory(directory)
        self._core = build_core(config)
        self._num_requests = 0
        self._collectors: dict[str, _Collector] = {}

    @property
    def max_model_len(self) -> int:
        """Prompt plus output, in tokens."""
        return self._core.model.max_model_len

    def reload(self, model: str | None = None, revision: str | None = None) -> None:
        """Run what comes from now on on other weights of the same model; None reads again what the
        weights that run came from. Open streams finish on those they began with.

        Raises ReloadRefused, ConfigError, ModelNotFound or CheckpointError; nothing has changed
        then.
        """
        source = ModelSource(model=model, revision=revision) if model is not None else None
        self._core.switch(self._core.load(source))

    def close(self) -> None:
        """Leave the node's KV store, if there is one. The object is not used again."""
        self._core.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingParams | None = None,
        *,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt, batched; the outputs are in the prompts' order.

        A wrong prompt raises InvalidRequest before anything is run. `use_tqdm` None shows a bar on
        a terminal.
        """
        requests = [self._request(prompt, sampling) for prompt in _as_list(prompts)]
        for request in requests:
            self._core.validate(request)
        collectors = [self._start(request) for request in requests]
        try:
            self._run(collectors, use_tqdm)
        finally:
            for request in requests:
                self._end(request)
        return [collector.output() for collector in collectors]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling: SamplingParams | None = None,
        *,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several at once."""
        first = messages[0] if messages else None
        conversations = [messages] if isinstance(first, Mapping) else messages
        prompts = [self._render(conversation) for conversation in conversations]
        return self.generate(prompts, sampling, use_tqdm=use_tqdm)

    def stream(
        self, prompt: Prompt, sampling: SamplingParams | None = None
    ) -> Generator[str, None, None]:
        """The text of one sequence, piece by piece; closing the iterator aborts.

        `sampling.n` above 1 raises InvalidRequest: one stream cannot tell sequences apart.
        """
        request = self._request(prompt, sampling)
        if request.sampling.n > 1:
            raise InvalidRequest(f"n must be 1 in a stream, got {request.sampling.n}", "n")
        collector = self._start(request)
        try:
            while not collector.is_finished:
                self._step()
                yield from collector.drain()
            yield from collector.drain()  # what came while another call was stepping
            if collector.error:
                raise RtpServeError(collector.error)
        finally:
            self._end(request)

    def stream_chat(
        self, messages: Sequence[Message], sampling: SamplingParams | None = None
    ) -> Generator[str, None, None]:
        """The same for a conversation's answer."""
        with closing(self.stream(self._render(messages), sampling)) as pieces:
            yield from pieces

    def _render(self, messages: Any) -> list[int]:
        text = self._template.render(messages)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _request(self, prompt: Prompt, sampling: SamplingParams | None) -> Request:
        params = sampling or SamplingParams()
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        seed = secrets.randbits(64) if params.seed is None else params.seed % (1 << 64)
        self._num_requests += 1
        return Request(f"llm-{self._num_requests}", tuple(token_ids), params, seed)

    def _start(self, request: Request) -> "_Collector":
        self._core.add_request(request)
        self._collectors[request.request_id] = collector = _Collector(self.tokenizer, request)
        return collector

    def _end(self, request: Request) -> None:
        del self._collectors[request.request_id]
        self._core.abort(request.request_id)

    def _step(self) -> None:
        """Whole or not at all: an interrupted one would leave blocks and books half written."""
        with deferred_interrupt():
            for delta in self._core.step():
                collector = self._collectors[delta.request_id]
                collector.take(delta)
                if collector.is_finished:
                    self._core.abort(delta.request_id)

    def _run(self, collectors: list["_Collector"], use_tqdm: bool | None) -> None:
        disable = None if use_tqdm is None else not use_tqdm
        num_finished = 0
        with tqdm(total=len(collectors), unit="prompt", disable=disable) as bar:
            while num_finished < len(collectors):
                self._step()
                now_finished = sum(collector.is_finished for collector in collectors)
                bar.update(now_finished - num_finished)
                num_finished = now_finished


class _Collector:
    """Gathers one request's deltas into its output, and ends sequences at stop strings."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        sampling = request.sampling
        self._request = request
        self._completions = [
            Completion(index, "", (), FinishReason.ABORT) for index in range(sampling.n)
        ]
        self._streams = [
            TextStream(
                tokenizer,
                stop=sampling.stop,
                include_stop=sampling.include_stop,
                min_tokens=sampling.min_tokens,
                skip_special_tokens=sampling.skip_special_tokens,
            )
            for _ in range(sampling.n)
        ]
        self._open = set(range(sampling.n))
        self._pieces: list[str] = []
        self._cached = NOTHING_CACHED
        self.error = ""
        self._prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()

    @property
    def is_finished(self) -> bool:
        return not self._open

    def take(self, delta: SequenceDelta) -> None:
        """Add a delta. What comes for a sequence that has ended is ignored."""
        if delta.index not in self._open:
            return
        text = self._streams[delta.index].push(delta.token_ids, delta.finish_reason)
        so_far = self._completions[delta.index]
        reason = FinishReason.STOP if text.stop is not None else delta.finish_reason
        self._completions[delta.index] = replace(
            so_far,
            text=so_far.text + text.text,
            token_ids=so_far.token_ids + delta.token_ids,
            logprobs=so_far.logprobs + delta.logprobs,
            finish_reason=reason or so_far.finish_reason,
        )
        self._pieces.append(text.text)
        self._prompt_logprobs = delta.prompt_logprobs or self._prompt_logprobs
        self._cached = max(self._cached, delta.cached)
        self.error = delta.error or self.error
        if reason is not None:
            self._open.discard(delta.index)

    def drain(self) -> list[str]:
        """The text of each delta since the last call; empty where it is still held back."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def output(self) -> RequestOutput:
        return RequestOutput(
            self._request.prompt_token_ids,
            tuple(self._completions),
            self._cached.total,
            self._prompt_logprobs,
            self.error,
            self._cached.host,
            self._cached.disk,
            self._cached.remote,
        )


def _as_list(prompts: Any) -> list[Prompt]:
    """One prompt or several: a string, a list of ints, or a list of those."""
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if items and all(isinstance(item, int) for item in items):
        return [items]
    for item in items:
        if not isinstance(item, str | list | tuple):
            raise InvalidRequest(
                f"a prompt is a string or a list of token ids, got {type(item).__name__}", "prompt"
            )
    return items
