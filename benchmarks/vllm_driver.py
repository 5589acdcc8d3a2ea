"""Runs vLLM's load generator for another process; started with the Python of vLLM's environment.

A line of stdin is a JSON list of `vllm bench serve`'s arguments; a line of stdout is the JSON of
what came of it, or `{"error": …}`. What vLLM prints goes to stderr.
"""

import argparse
import asyncio
import json
import os
import sys

from vllm.benchmarks.serve import add_cli_args, main_async

_KEPT = ("duration", "ttfts", "itls", "errors")


def main() -> None:
    """Until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        parser = argparse.ArgumentParser()
        add_cli_args(parser)
        try:
            result = asyncio.run(main_async(parser.parse_args(json.loads(line))))
        except Exception as error:  # the top of a process: the caller must get an answer
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
            continue
        print(json.dumps({name: result[name] for name in _KEPT}), file=answers)


if __name__ == "__main__":
    main()
