"""The weight store: final weights made once a node, mapped by every replica.

    checkpoint's stamp ──► NAME.source ──► the file's name, which its content gave

`get` maps the file that was made of a checkpoint; without one it makes the weights. Then their
identity is known too: if a copy of the checkpoint has a file, that is mapped, and else one is
written and mapped. A store that cannot be read or written costs a warning, never a start.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from rtp_serve.clock import Clock
from rtp_serve.errors import CorruptWeights
from rtp_serve.loader.cache import locked
from rtp_serve.loader.stamp import checkpoint_stamp
from rtp_serve.loader.store.directory import StoreDirectory
from rtp_serve.loader.store.format import Header, lay_out, read_header
from rtp_serve.loader.store.guard import WeightGuard
from rtp_serve.loader.store.key import StoreKey
from rtp_serve.loader.store.payload import FileIO, check_payload, seal, write_payload
from rtp_serve.loader.store.tensors import buffers, map_weights, specs_digest, stored_tensors
from rtp_serve.loader.weights import LoadedWeights
from rtp_serve.models.weights import WeightSpec
from rtp_serve.ops.dispatch import Backend, backend
from rtp_serve.ops.gemm import PACKED_LAYOUT_VERSION

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model's weights, before anybody has looked for them."""

    checkpoint: Path
    architecture: str
    specs: Sequence[WeightSpec]
    dtype: str

    def stamp(self) -> str | None:
        """None for a checkpoint without stamp, or where weights are not packed."""
        if backend() is Backend.REFERENCE:
            return None
        return checkpoint_stamp(self.checkpoint)

    def key(self, identity: str) -> StoreKey:
        """Of the file, if the checkpoint has this identity."""
        return StoreKey(
            checkpoint=identity,
            architecture=self.architecture,
            specs=specs_digest(self.specs),
            dtype=self.dtype,
            layout=PACKED_LAYOUT_VERSION,
        )

    def source(self, stamp: str) -> str:
        """The name under which the store knows the checkpoint with this stamp."""
        return self.key(stamp).name


class WeightStore:
    """One process's view of the store, for one model: `get` is called once."""

    def __init__(
        self, directory: StoreDirectory, max_bytes: int, clock: Clock, io: FileIO | None = None
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._clock = clock
        self._io = io or FileIO()
        self.guard = WeightGuard()
        """Knows of the weights that `get` gave."""

    def get(self, wanted: Wanted, make: Callable[[], LoadedWeights]) -> LoadedWeights:
        """The weights, mapped if there is or can be a file of them, else as `make` gives them.

        Replicas that start together wait for the first of them and map what it has written.
        """
        stamp = wanted.stamp()
        if stamp is None:
            return make()
        source = wanted.source(stamp)
        found = self._made_of(source, wanted)
        if found is not None:
            return found
        with ExitStack() as held:
            if not self._is_maker(source, held):
                return make()
            found = self._made_of(source, wanted)
            if found is not None:
                return found
            made = make()
            if wanted.stamp() != stamp:
                _log.warning("weight store: %s changed while it was read", wanted.checkpoint)
                return made
            return self._kept(source, wanted, made, held)

    def _is_maker(self, name: str, held: ExitStack) -> bool:
        """Wait for the lock; False, and a warning, where there can be none."""
        try:
            held.enter_context(self._directory.maker_lock(name))
        except OSError as error:
            _log.warning("weight store: not used: %s", error)
            return False
        return True

    def _made_of(self, source: str, wanted: Wanted) -> LoadedWeights | None:
        name = self._directory.made_of(source)
        return None if name is None else self._mapped(name, wanted)

    def _mapped(self, name: str, wanted: Wanted) -> LoadedWeights | None:
        """The finished file's weights. A damaged file is moved aside."""
        path = self._directory.finished(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not there; or not for us, and then writing it tells why
            return None
        with ExitStack() as opened:
            opened.callback(os.close, descriptor)
            try:
                header = read_header(descriptor)
                identity = header.key.checkpoint
                if header.key.name != name:
                    raise CorruptWeights("it holds other weights than its name says")
                if header.key != wanted.key(identity):
                    _log.warning("weight store: %s: noted for other weights", path)
                    return None
                weights = map_weights(descriptor, header, wanted.specs)
                self._verify_later(name, descriptor, header, opened)
            except CorruptWeights as error:
                _log.warning("weight store: %s: %s; loading the checkpoint", path, error)
                self._quarantine(name, descriptor)
                return None
            except OSError as error:
                _log.warning("weight store: not used: %s: %s", path, error)
                return None
        _log.info("weight store: mapped %s", path)
        with suppress(OSError):  # the order of eviction is all that it costs
            self._directory.touch(name, self._clock.wall())
        return LoadedWeights(weights, identity, int(header.share, 16))

    def _verify_later(self, name: str, descriptor: int, header: Header, opened: ExitStack) -> None:
        """Check the payload once a boot, beside the work that it is for.

        Where a damaged file could not be moved aside every start would meet it again, so there it
        is checked before it is used.
        """
        if self._directory.is_verified(name, os.fstat(descriptor)):
            return
        if not os.access(self._directory.root, os.W_OK, effective_ids=True):
            check_payload(descriptor, header)
            return
        held = opened.pop_all()

        def verify() -> None:
            with held:
                self._verify(name, descriptor, header)

        self.guard.start(verify, is_awaited=False)

    def _verify(self, name: str, descriptor: int, header: Header) -> None:
        """One process at a time; the others then find its mark, or the same damage."""
        status = os.fstat(descriptor)
        path = self._directory.finished(name)
        with ExitStack() as turn:
            with suppress(OSError):  # where there are no locks each process checks
                turn.enter_context(locked(os.dup(descriptor), fcntl.LOCK_EX))
            if self._directory.is_verified(name, status):
                return
            try:
                check_payload(descriptor, header)
            except CorruptWeights as error:
                self._quarantine(name, descriptor)
                raise CorruptWeights(f"weight store: {path}: {error}") from error
            try:
                self._directory.mark_verified(name, status)
            except OSError as error:
                _log.warning("weight store: %s is not marked as verified: %s", path, error)

    def _quarantine(self, name: str, descriptor: int) -> None:
        try:
            self._directory.quarantine(name, os.fstat(descriptor))
        except OSError as error:
            _log.warning("weight store: cannot move a damaged file aside: %s", error)

    def _kept(
        self, source: str, wanted: Wanted, made: LoadedWeights, held: ExitStack
    ) -> LoadedWeights:
        """The weights in the pages of their file, which a copy of the checkpoint may have left."""
        name = wanted.key(made.identity).name
        if not self._is_maker(name, held):
            return made
        found = self._mapped(name, wanted)
        if found is None:
            return self._written(source, wanted, made, held)
        try:
            self._directory.note_source(source, name)
        except OSError as error:
            _log.warning("weight store: a start will read the checkpoint again: %s", error)
        return found

    def _written(
        self, source: str, wanted: Wanted, made: LoadedWeights, held: ExitStack
    ) -> LoadedWeights:
        """The weights in a file's pages; as they are, after one warning, where that fails."""
        key = wanted.key(made.identity)
        tensors = stored_tensors(made.weights, wanted.specs)
        header = lay_out(key, str(wanted.checkpoint.absolute()), made.share, tensors)
        if header.total_bytes > self._max_bytes:
            _log.warning(
                "weight store: %s takes %d bytes, more than weight_store.max_size (%d)",
                wanted.checkpoint,
                header.total_bytes,
                self._max_bytes,
            )
            return made
        try:
            self._directory.make_room(header.total_bytes, self._max_bytes)
            descriptor = self._directory.create_draft(key.name)
            held.callback(os.close, descriptor)
            write_payload(descriptor, header, buffers(made.weights, wanted.specs), self._io)
            mapped = map_weights(descriptor, header, wanted.specs)
        except OSError as error:
            self._not_written(key.name, error)
            return made
        self._seal_later(source, descriptor, header, held)
        return LoadedWeights(mapped, made.identity, made.share)

    def _seal_later(self, source: str, descriptor: int, header: Header, held: ExitStack) -> None:
        """Finish the file beside the first steps; the maker's locks are held until it is there.

        The payload is on disk: should this fail, there is no file, but the weights are good.
        """
        taken = held.pop_all()

        def finish() -> None:
            with taken:
                self._finish(source, descriptor, header)

        self.guard.start(finish, is_awaited=True)

    def _finish(self, source: str, descriptor: int, header: Header) -> None:
        name = header.key.name
        try:
            seal(descriptor, header, self._io)
            self._directory.publish(name)
            self._directory.note_source(source, name)
            self._directory.touch(name, self._clock.wall())
            self._directory.mark_verified(name, os.fstat(descriptor))
        except OSError as error:
            self._not_written(name, error)

    def _not_written(self, name: str, error: OSError) -> None:
        """A warning, and no draft; whoever has mapped it keeps it."""
        _log.warning("weight store: not written: %s", error)
        with suppress(OSError):
            self._directory.draft(name).unlink()
