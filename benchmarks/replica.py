"""A replica's process for `replica_start`: an engine without a server, told what to do by lines.

The first argument is the engine's configuration as JSON. It says `ready` when everything is
imported; then each line of stdin is a number of tokens and each line of stdout the times of a
request of that length as JSON: seconds from the line to each token. The first one loads the model.
"""

import json
import sys
import time

from benchmarks.in_process import InProcessEngine
from benchmarks.prompts import PromptSource
from rtp_serve.config.engine import EngineConfig
from rtp_serve.config.model import read_model_config
from rtp_serve.loader.hub import resolve
from rtp_serve.models.registry import MODELS
from rtp_serve.ops.dispatch import backend


def main() -> None:
    """Until stdin ends."""
    config = EngineConfig.model_validate_json(sys.argv[1])
    prompt_tokens = int(sys.argv[2])
    shape = read_model_config(resolve(config.model))
    prompts = PromptSource(shape.vocab_size, seed=0)
    MODELS.load(shape.architecture)
    print(f"ready, {backend()} kernels", flush=True)
    engine: InProcessEngine | None = None
    for line in sys.stdin:
        prompt = prompts.prompt(prompt_tokens)
        started_s = time.perf_counter()
        if engine is None:
            engine = InProcessEngine(config)
        loaded_s = time.perf_counter() - started_s
        (times,) = engine.token_times([prompt], int(line))
        print(json.dumps([loaded_s + each for each in times]), flush=True)


if __name__ == "__main__":
    main()
