"""torch, which an engine's process imports no sooner than somebody asks for it.

An engine that maps its weights from the store steps without it, and without it a process is 106 MiB
smaller. Where it runs, some of its thousand modules still do not: those below serve tracing,
exporting, training and quantizing, and nothing here; they and what they alone bring are 23 MiB of
Python objects and a second of CPU time. All are put off, not left out: the first attribute that is
asked of one runs it. Each must be one that torch imports for its name or for what it registers, and
does not use.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock, get_ident
from types import ModuleType
from typing import Any

DEFERRED = frozenset(
    {
        "torch",  # steps of the compiled kernels over weights of the store do without
        "torch._meta_registrations",  # shapes without data; alone 18 of the 23 MiB
        "torch.distributions",
        "torch.export",
        "torch.masked",
        "torch.quantization",
        "torch.utils.data",
    }
)

PATIENCE_S = 60.0
"""Of a thread that imports a part of a package which another thread is running: if that one wants
the same part, it waits for this one, and so they would for ever."""


def defer_unused_torch() -> None:
    """To be called before torch is imported. For a process that is an engine's alone: whoever
    traces wants the shapes of operators registered before."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def is_deferred(name: str) -> bool:
    """Whether the module is imported and has not run."""
    return _deferring(name) is not None


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = name.rpartition(".")[0]
        deferring = _deferring(package)
        if deferring is not None:  # it runs before what is in it
            deferring.run(sys.modules[package], PATIENCE_S)
            if name in sys.modules:
                return ModuleSpec(name, _Present(sys.modules[name]))
        if name not in DEFERRED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Deferring(spec.loader)
        return spec


class _Present(Loader):
    """Of a module that came while it was looked for: it is not to be loaded twice. Meanwhile it has
    no spec, or the import would go by that."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__
        module.__spec__ = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _Deferring(Loader):
    """`importlib.util.LazyLoader` runs a module when anything at all is read of it, its file's name
    too, which `inspect` reads of all modules; this one when something is that it lacks so far."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._running = RLock()
        self._thread: int | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def ask(attribute: str) -> Any:
            if self._thread == get_ident():  # it reads itself before it is complete
                raise AttributeError(f"module {module.__name__!r} has no attribute {attribute!r}")
            self.run(module)
            return getattr(module, attribute)

        self._ask = vars(module)["__getattr__"] = ask

    def run(self, module: ModuleType, patience_s: float = -1) -> None:
        """Once; who asks for it meanwhile waits, but for the thread that runs it. Raises
        ImportError after `patience_s`, if that is not negative."""
        if not self._running.acquire(timeout=patience_s):
            raise ImportError(
                f"{module.__name__} is imported by another thread, which has not finished "
                f"within {patience_s:g} s"
            )
        try:
            if self._thread is None and is_deferred(module.__name__):
                self._run(module)
        finally:
            self._running.release()

    def _run(self, module: ModuleType) -> None:
        self._thread = get_ident()
        try:
            self._loader.exec_module(module)
        finally:
            self._thread = None
        if vars(module).get("__getattr__") is self._ask:  # it has none of its own
            del vars(module)["__getattr__"]
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader


def _deferring(name: str) -> _Deferring | None:
    """The loader of a module that is imported and has not run."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    loader = spec.loader if spec is not None else None
    return loader if isinstance(loader, _Deferring) else None
