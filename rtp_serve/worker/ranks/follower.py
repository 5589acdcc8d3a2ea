"""A rank beside the leader's: does what it is told until it is told to end, or nobody is left."""

import logging
import threading

from rtp_serve.config.engine import ModelSource
from rtp_serve.errors import RankError, RtpServeError
from rtp_serve.parallel.collectives import Collectives
from rtp_serve.worker.rank_worker import RankWorker
from rtp_serve.worker.ranks.links import Receiver, Sender
from rtp_serve.worker.ranks.messages import (
    Drop,
    End,
    Failed,
    Load,
    Loaded,
    Order,
    Step,
    TakeBack,
    decode_order,
    encode,
)

logger = logging.getLogger(__name__)


class Follower:
    """Runs in the thread that calls `run`; versions are loaded in one of their own."""

    def __init__(
        self, worker: RankWorker, collectives: Collectives, orders: Receiver, reports: Sender
    ) -> None:
        self._worker = worker
        self._collectives = collectives
        self._orders = orders
        self._reports = reports

    def run(self) -> None:
        """Load the first version, and go on until `End` or the leader's end."""
        try:
            if self._load(None):
                self._obey()
        except RankError as error:
            logger.warning("rank %d ends: %s", self._collectives.rank, error.message)
        finally:
            # Whoever waits for this rank within a step waits no longer.
            self._collectives.abort()
            self._reports.close()

    def _obey(self) -> None:
        while True:
            order = decode_order(self._orders.receive())
            if isinstance(order, End):
                return
            self._carry_out(order)

    def _carry_out(self, order: Order) -> None:
        match order:
            case Step(scheduled):
                self._worker.execute(scheduled)
            case Load(model, revision):
                source = ModelSource(model=model, revision=revision) if model else None
                threading.Thread(target=self._load, args=(source,), daemon=True).start()
            case Drop(version):
                self._worker.drop(version)
            case TakeBack(version):
                self._worker.take_back(version)

    def _load(self, source: ModelSource | None) -> bool:
        """Load and report; whether that went well."""
        try:
            version = self._worker.load(source)
        except RtpServeError as error:
            self._reports.send(encode(Failed(error.code, error.message)))
            return False
        except Exception as error:  # the thread's top: the leader waits for a report
            logger.exception("rank %d cannot load", self._collectives.rank)
            self._reports.send(encode(Failed(RtpServeError.code, f"{type(error).__name__}")))
            return False
        self._reports.send(encode(Loaded(version.namespace, version.model.content)))
        return True
