"""Load by a small client of our own, where vLLM's is not installed."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator

import httpx

from benchmarks.load import LoadResult, Target
from benchmarks.workloads import Workload

_FIRST_ORDINARY_ID = 64


class OwnClient:
    """A LoadGenerator over httpx. Prompts are random token ids."""

    name = "own client (httpx)"

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def run(self, target: Target, workload: Workload, seed: int) -> LoadResult:
        prompts = list(make_prompts(workload, self._vocab_size, seed))
        return asyncio.run(_run(target, workload, prompts))

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        """Connections end with a run."""


def make_prompts(workload: Workload, vocab_size: int, seed: int) -> Iterator[list[int]]:
    """A prompt for each request; requests take the shared prefixes in turn."""
    ids = random.Random(seed)

    def draw(count: int) -> list[int]:
        return ids.choices(range(_FIRST_ORDINARY_ID, vocab_size), k=count)

    prefixes = [draw(workload.prefix_tokens) for _ in range(max(1, workload.num_prefixes))]
    for _, prefix in zip(range(workload.num_requests), itertools.cycle(prefixes), strict=False):
        yield prefix + draw(workload.prompt_tokens)


async def _run(target: Target, workload: Workload, prompts: list[list[int]]) -> LoadResult:
    limit = asyncio.Semaphore(workload.concurrency)
    async with httpx.AsyncClient(base_url=target.base_url, timeout=None) as client:
        started_s = time.perf_counter()
        answers = await asyncio.gather(
            *(_request(client, target, workload, prompt, limit) for prompt in prompts),
            return_exceptions=True,
        )
        duration_s = time.perf_counter() - started_s
    times = [answer for answer in answers if not isinstance(answer, BaseException)]
    errors = [repr(answer) for answer in answers if isinstance(answer, BaseException)]
    return LoadResult(
        duration_s,
        tuple(moments[0] for moments in times),
        tuple(
            tuple(later - earlier for earlier, later in itertools.pairwise(moments))
            for moments in times
        ),
        tuple(errors),
    )


async def _request(
    client: httpx.AsyncClient,
    target: Target,
    workload: Workload,
    prompt: list[int],
    limit: asyncio.Semaphore,
) -> list[float]:
    """Seconds from sending to each chunk with a choice."""
    body = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": workload.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    moments = []
    async with limit:
        started_s = time.perf_counter()
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise httpx.HTTPError(f"{response.status_code}: {(await response.aread())[:200]!r}")
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                if data and data != "[DONE]" and json.loads(data).get("choices"):
                    moments.append(time.perf_counter() - started_s)
    if not moments:
        raise httpx.HTTPError("the answer had no chunk")
    return moments
