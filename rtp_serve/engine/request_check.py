"""Whether a model can run a request."""

from collections.abc import Sequence

from rtp_serve.engine.client import ServedModel
from rtp_serve.engine.request import Request
from rtp_serve.errors import ContextLengthExceeded, InvalidRequest


def check_request(request: Request, model: ServedModel) -> None:
    """Raise InvalidRequest if it cannot."""
    num_prompt = len(request.prompt_token_ids)
    if num_prompt == 0:
        raise InvalidRequest("the prompt is empty; at least one token is needed", "prompt")
    if num_prompt >= model.max_model_len:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens; with one token of output the limit is "
            f"{model.max_model_len - 1}",
            "prompt",
        )
    _check_token_ids("prompt", request.prompt_token_ids, model.vocab_size)
    request.sampling.check_vocabulary(model.vocab_size)
    if request.emitted:
        _check_emitted(request, model)


def max_output_tokens(request: Request, model: ServedModel) -> int:
    """The request's limit, and the context's."""
    room = model.max_model_len - len(request.prompt_token_ids)
    return min(request.sampling.max_tokens or room, room)


def _check_emitted(request: Request, model: ServedModel) -> None:
    if len(request.emitted) != request.sampling.n or not request.indices:
        raise InvalidRequest(
            f"emitted must have {request.sampling.n} entries, not all of them None, "
            f"got {len(request.emitted)}",
            "emitted",
        )
    limit = max_output_tokens(request, model)
    for index in request.indices:
        emitted = request.emitted_tokens(index)
        if len(emitted) >= limit:
            raise InvalidRequest(
                f"emitted[{index}] has {len(emitted)} tokens; one that goes on has at most "
                f"{limit - 1}",
                "emitted",
            )
        if emitted:
            _check_token_ids("emitted", emitted, model.vocab_size)


def _check_token_ids(name: str, token_ids: Sequence[int], vocab_size: int) -> None:
    kinds = set(map(type, token_ids))
    if kinds != {int}:
        named = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidRequest(f"{name} token ids must be integers, got {named}", name)
    low, high = min(token_ids), max(token_ids)
    if low < 0 or high >= vocab_size:
        raise InvalidRequest(
            f"{name} token ids must be from 0 to {vocab_size - 1}, got {low if low < 0 else high}",
            name,
        )
