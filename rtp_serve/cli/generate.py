"""`rtp-serve generate`: one completion to standard output."""

import sys
from contextlib import closing

from rtp_serve.engine.sampling_params import SamplingParams


def run_generate(
    prompt: str,
    model: str,
    temperature: float,
    max_tokens: int,
    seed: int | None,
    num_threads: int | None,
) -> None:
    """Stream the continuation of `prompt`."""
    from rtp_serve.llm import LLM

    sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    llm = LLM(model, num_threads=num_threads)
    with closing(llm.stream(prompt, sampling)) as stream:
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
