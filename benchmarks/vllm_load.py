"""Load by vLLM's own generator, `vllm bench serve`, in a process that lives for many runs."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.load import LoadResult, Target
from benchmarks.processes import descendants
from benchmarks.workloads import Workload
from rtp_serve.errors import RtpServeError

_DRIVER = Path(__file__).with_name("vllm_driver.py")

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


class VllmBench:
    """A LoadGenerator. Importing vLLM takes it some seconds, once."""

    name = "vllm bench serve"

    def __init__(
        self, python: Path, tokenizer: Path, log: Path, *, reuses_connections: bool
    ) -> None:
        """`python` is that of an environment with vLLM; `tokenizer` a checkpoint directory.

        llama.cpp closes a connection that was idle for some seconds, and the generator then counts
        the request that was about to use it as failed: its comparisons take a new one each time.
        """
        self._tokenizer = tokenizer
        self._options = () if reuses_connections else ("--header=Connection=close",)
        self._log = log
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [python, _DRIVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | OFFLINE,
            )

    def run(self, target: Target, workload: Workload, seed: int) -> LoadResult:
        """Raises RtpServeError when the generator itself fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        arguments = [*bench_arguments(target, workload, self._tokenizer, seed), *self._options]
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RtpServeError(f"vLLM's load generator ended; {self._log} says why")
        answer = json.loads(line)
        if "error" in answer:
            raise RtpServeError(f"vLLM's load generator: {answer['error']}")
        return parse_result(answer)

    def pids(self) -> list[int]:
        return descendants(self._process.pid)

    def close(self) -> None:
        self._process.communicate()


def bench_arguments(target: Target, workload: Workload, tokenizer: Path, seed: int) -> list[str]:
    """The command line of `vllm bench serve`."""
    common = {
        "backend": "openai",
        "base-url": target.base_url,
        "endpoint": "/v1/completions",
        "model": target.model,
        "tokenizer": tokenizer,
        "temperature": 0,
        "seed": seed,
        "ready-check-timeout-sec": 0,
        "num-prompts": workload.num_requests,
        "max-concurrency": workload.concurrency,
    }
    options = common | (_prefixed(workload) if workload.num_prefixes else _random(workload))
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [*flags, "--ignore-eos", "--disable-tqdm", "--save-detailed"]


def _random(workload: Workload) -> dict[str, Any]:
    return {
        "dataset-name": "random",
        "random-input-len": workload.prompt_tokens,
        "random-output-len": workload.output_tokens,
    }


def _prefixed(workload: Workload) -> dict[str, Any]:
    return {
        "dataset-name": "prefix_repetition",
        "prefix-repetition-prefix-len": workload.prefix_tokens,
        "prefix-repetition-suffix-len": workload.prompt_tokens,
        "prefix-repetition-num-prefixes": workload.num_prefixes,
        "prefix-repetition-output-len": workload.output_tokens,
    }


def parse_result(result: dict[str, Any]) -> LoadResult:
    """vLLM's answer has a place for every request, zeros where one failed."""
    errors = result["errors"]
    good = [index for index, error in enumerate(errors) if not error]
    return LoadResult(
        result["duration"],
        tuple(result["ttfts"][index] for index in good),
        tuple(tuple(result["itls"][index]) for index in good),
        tuple(error for error in errors if error),
    )
