"""How soon a Master in a process of its own answers, at a steady rate."""

import json
import subprocess
import sys

from rtp_serve.errors import RtpServeError


def round_trips_s(rate: float, seconds: float) -> list[float]:
    """Seconds of each. Raises RtpServeError if they cannot be measured."""
    command = [sys.executable, "-m", "deployments.master.round_trips"]
    command += ["--rate", str(rate), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RtpServeError(f"the Master was not asked: {done.stderr.strip()[-400:]}")
    found: list[float] = json.loads(done.stdout.splitlines()[-1])["seconds"]
    return found
