"""How soon a Master answers that is in another process.

    python -m deployments.master.round_trips --rate 200 --seconds 10

Starts a cluster of its own and prints a JSON object: the seconds that each answer took, in order.
"""

import json
import os
from argparse import ArgumentParser

from deployments.environment import cluster_directory


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)  # no cluster of somebody else
    with cluster_directory() as directory:
        # Ray reads its environment when it is imported, so not before.
        from deployments.master.asking import ask

        assert directory is not None, "the cluster is our own"
        took = ask(arguments.rate, arguments.seconds, directory)
    print(json.dumps({"seconds": took}))


if __name__ == "__main__":
    main()
