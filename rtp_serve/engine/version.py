"""A version of the served model: one set of weights. A reload brings a new one.

New requests run on the newest version. Those that came before finish on theirs, so for a while two
versions run side by side, over one KV cache and in the same steps.
"""

from dataclasses import dataclass

from rtp_serve.engine.client import ServedModel


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """Weights that are loaded, as the control plane knows them."""

    number: int
    """Rises with every load; the executor knows the weights by it."""

    model: ServedModel

    @property
    def namespace(self) -> bytes:
        """See `ServedModel.namespace`."""
        return self.model.namespace
