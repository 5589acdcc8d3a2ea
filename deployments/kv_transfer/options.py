"""What a replica is told of its part in exchanging prompts."""

from dataclasses import dataclass

from rtp_serve.config.disaggregation import TransferConfig


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """It goes to the replica with its constructor."""

    transfer: TransferConfig
    tcp_port_range: range
    asks: bool = False
    """Whether prefill replicas compute prompts for this one, at any time."""

    can_switch: bool = False
    """Whether decode replicas may have become prefill replicas."""

    is_exact: bool = True
    """Whether they have this one's arithmetic."""
