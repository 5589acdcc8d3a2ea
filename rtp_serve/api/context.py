"""What every service stands on: the engine, the model's text side, limits, time and randomness."""

import random
from dataclasses import dataclass, field

from rtp_serve.api.openai_types import GenerationBody
from rtp_serve.api.responses import Envelope
from rtp_serve.clock import Clock
from rtp_serve.config.api import LimitsConfig
from rtp_serve.config.routing import DEFAULT_CLASS
from rtp_serve.engine.client import EngineClient, ServedModel
from rtp_serve.engine.request import Request, cache_salt
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.errors import ModelNotFound
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServingContext:
    """One served model, as its front end sees it."""

    engine: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    clock: Clock
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    slo_classes: frozenset[str] = frozenset({DEFAULT_CLASS})
    """That a request may name."""
    rng: random.Random = field(default_factory=random.SystemRandom)
    """Draws ids, and seeds for requests that bring none."""

    async def model(self, asked_for: str | None = None) -> ServedModel:
        """The served model. Raises ModelNotFound if the client asked for another."""
        model = await self.engine.served_model()
        if asked_for is not None and asked_for != model.name:
            raise ModelNotFound(
                f"the model {asked_for[:200]!r} does not exist; served: {model.name!r}"
            )
        return model

    def draw_id(self) -> str:
        """128 random bits, in hex."""
        return f"{self.rng.getrandbits(128):032x}"

    def request(
        self,
        request_id: str,
        token_ids: tuple[int, ...],
        sampling: SamplingParams,
        body: GenerationBody,
        tenant: str,
    ) -> Request:
        """The engine's request for one prompt of a client's body."""
        return Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            sampling=sampling,
            seed=self._seed(body.seed),
            priority=body.priority,
            slo_class=body.slo_class,
            cache_salt=cache_salt(tenant, body.cache_salt),
        )

    def envelope(self, prefix: str, kind: str, model: ServedModel) -> Envelope:
        """What the answer to a new request starts with."""
        return {
            "id": f"{prefix}-{self.draw_id()}",
            "object": kind,
            "created": int(self.clock.wall()),
            "model": model.name,
            "system_fingerprint": None,
        }

    def _seed(self, asked_for: int | None) -> int:
        seed = self.rng.getrandbits(64) if asked_for is None else asked_for
        return seed % (1 << 64)
