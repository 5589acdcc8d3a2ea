"""Which of a deployment's replicas have its role, and which the other one.

A number says how many; replicas find out by their ranks who, so nobody has to tell them. The first
one never switches: a role that has had a replica keeps one.
"""

from rtp_serve.routing.types import Role

OTHER_ROLES = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}
"""Between which replicas can switch."""


def role_of_rank(home: Role, rank: int, num_switched: int) -> Role:
    """Of the replica of `rank`, from 0 on without gaps, in a deployment whose role is `home`."""
    return OTHER_ROLES.get(home, home) if 1 <= rank <= num_switched else home
