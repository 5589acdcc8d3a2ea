"""The model behind replicas, as its front end must know it."""

import asyncio

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from rtp_serve.engine.client import ServedModel
from rtp_serve.errors import EngineDead


class ReplicaModel:
    """Asked for once, and again when somebody wants to know whether it has changed."""

    def __init__(self, handle: DeploymentHandle, timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s
        self._model: ServedModel | None = None

    async def get(self) -> ServedModel:
        """Raises EngineDead if no replica says."""
        return self._model or await self.refresh()

    async def refresh(self) -> ServedModel:
        """Raises EngineDead if no replica says."""
        try:
            async with asyncio.timeout(self._timeout_s):
                self._model = await self._handle.served_model.remote()
        except (RayError, RayServeException, TimeoutError) as error:
            raise EngineDead(f"no replica answers: {type(error).__name__}") from error
        return self._model
