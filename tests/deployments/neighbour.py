"""Somebody else's application on the same cluster."""

import os

from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Neighbour:
    def __call__(self) -> int:
        return os.getpid()


app = Neighbour.bind()
