"""The launcher: `python -m deployments.launch FILE`, which `rtp-serve serve FILE` becomes.

Does what `serve run FILE` does, and beyond it: checks the file before anything starts, fetches
models while Ray starts, says when the API answers, and on Ctrl-C or SIGTERM takes down everything
it has started. With RAY_ADDRESS it joins that cluster and later removes its applications only.
"""

import sys

from deployments.environment import cluster_directory
from deployments.stop_signals import StopSignals
from rtp_serve.errors import RtpServeError
from rtp_serve.observability.logging import configure_logging


def main() -> None:
    """Exit code 0 after a stop on demand, 1 after one line that says what is wrong."""
    signals = StopSignals()
    try:
        configure_logging()
        with cluster_directory() as directory:
            # Ray reads its environment when it is imported, so not before.
            from deployments.launcher import launch

            launch(sys.argv[1], directory, signals)
    except RtpServeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
