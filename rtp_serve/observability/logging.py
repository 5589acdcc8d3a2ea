"""Logging set up once per process. `RTP_SERVE_LOG=debug` prints one line an engine step."""

import logging
import os

from rtp_serve.errors import ConfigError, did_you_mean

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(default: str = "warning") -> None:
    """Give the package's logger a level and, unless the process has one, a handler on stderr.

    Raises ConfigError for a level that `RTP_SERVE_LOG` does not know.
    """
    level = os.environ.get("RTP_SERVE_LOG", default).lower()
    if level not in _LEVELS:
        raise ConfigError(f"RTP_SERVE_LOG={level!r} is not a level{did_you_mean(level, _LEVELS)}")
    logger = logging.getLogger("rtp_serve")
    logger.setLevel(_LEVELS[level])
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)
