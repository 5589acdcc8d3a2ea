"""The names of requests. The Master books one under the name that its attempt has; a prefill
replica computes it under a longer one, which begins with that."""

PART = "@"
"""Not in a name that a client gives."""


def booked(name: str) -> str:
    """The Master's name of what a prefill replica computes."""
    return name.rpartition(PART)[0] or name
