"""BinaryManager: finds the engine that works best on this machine, fetches and tests it, and remembers which it was.

The order: the user's own (a setting), builds of the pinned releases for the GPUs that are here, the build for the CPU,
the engines from Python wheels, and what is on the PATH. The first that passes its tests is used. What a user has set or
chosen is meant: if it does not work, that is an error, and no other engine takes its place in silence.
"""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from genai_notebook.core.callbacks import deliver_here
from genai_notebook.core.engines import places
from genai_notebook.core.engines.arrivals import Arrivals, NotNowError
from genai_notebook.core.engines.catalog import CATALOG, Build
from genai_notebook.core.engines.choices import Choices
from genai_notebook.core.engines.engine import KINDS, PROJECTS, Engine, Kind
from genai_notebook.core.engines.listing import describe, first_usable
from genai_notebook.core.engines.memory import Memory, own_path
from genai_notebook.core.engines.places import Look
from genai_notebook.core.engines.proof import Prover, UnusableError
from genai_notebook.core.engines.releases import Releases
from genai_notebook.core.engines.search import HINT, VARIABLES, WORDS, Found, Search, bring, unusable
from genai_notebook.core.engines.trial import Trial
from genai_notebook.core.engines.verdicts import Verdicts, drivers_of
from genai_notebook.core.processes.registry import EngineRegistry
from genai_notebook.core.schema import EngineCandidate, EngineProgress
from genai_notebook.core.settings import OFF, Settings
from genai_notebook.core.system.info import SystemInfo
from genai_notebook.core.utilities import get_platform_key
from genai_notebook.errors import BinaryError, DownloadError, InvalidRequestError

AUTO = "auto"
OnLog = Callable[[str, str], None]
OnProgress = Callable[[EngineProgress], None]
#: What engines of a kind can be tried with right now, or, in words, why there is nothing.
FindTrial = Callable[[Kind], Awaitable["Trial | str"]]


class BinaryManager:
    """Finds, fetches and tests engines.

    Args:
        settings: where things lie, and the user's own engines; default: from the environment.
        system: the machine; default: this one.
        catalog: the pinned releases.
        notify: told of progress as `Runtime.subscribe` hands it on.
    """

    _instance: BinaryManager | None = None
    _instance_lock = threading.Lock()

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        system: SystemInfo | None = None,
        catalog: Sequence[Build] = CATALOG,
        notify: Callable[[str, dict[str, Any]], None] = lambda name, data: None,
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self._system = system or SystemInfo(self.settings)
        self._catalog = catalog
        self._notify = notify
        mirror = self.settings.mirror
        self._verdicts = Verdicts(self.settings.cache)
        self._choices = Choices(self.settings.engines)
        self._releases = Releases(self.settings.engines, None if mirror == OFF else mirror)
        self._arrivals = Arrivals(self._releases, self._verdicts, allowed=mirror != OFF)
        self._memory = Memory(self.settings, self._choices)
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = WeakKeyDictionary()
        #: What `test` tries engines with. Set by the Runtime, which knows the models.
        self.find_trial: FindTrial | None = None

    @classmethod
    def get_instance(cls) -> BinaryManager:
        """This process's own one."""
        with cls._instance_lock:
            if cls._instance is None:
                cls._instance = cls()
            return cls._instance

    # ---- the one to use ---------------------------------------------------------------------------------------------

    async def resolve(
        self,
        kind: Kind,
        *,
        trial: Trial | None = None,
        force_validation: bool = False,
        stay: bool = False,
        on_log: OnLog | None = None,
        on_progress: OnProgress | None = None,
    ) -> Engine:
        """The engine to use for `kind`: the first in the order that passes its tests, fetched if need be.

        What has passed is remembered; a program is tested again when its file, or a GPU driver, has changed.

        Args:
            kind: 'llama' or 'diffusion'.
            trial: what it must be able to load and compute; None: it must only run.
            force_validation: forget what is known, and make all tests again, in their order.
            stay: keep to the engine that was used last, while it is there, though a better one might be had by now.
            on_log: called with (message, level) for every step worth telling.
            on_progress: told how far downloads and tests are.

        Raises:
            BinaryError: there is none that works; `details["candidates"]` lists what was tried, and why not.
            ServerError: the model of the trial cannot be loaded (MODEL_UNUSABLE).
        """
        _check_kind(kind)
        if (known := self._good_enough(kind, trial, force_validation, stay)) is not None:
            return known
        async with self._lock(kind):
            # Perhaps somebody else has just found it.
            if (known := self._good_enough(kind, trial, force_validation, stay)) is not None:
                return known
            search = Search(
                kind,
                prover=await self._prover(),
                arrivals=self._arrivals,
                releases=self._releases,
                trial=trial,
                again=force_validation,
                tell=on_log or _to_no_one,
                progress=on_progress or _to_no_one,
            )
            before = None if force_validation else self._memory.recall(kind)
            return await self._search(kind, search, before)

    def _good_enough(self, kind: Kind, trial: Trial | None, force: bool, stay: bool) -> Engine | None:
        found = None if force else self._memory.recall(kind, stay=stay)
        if found is None or trial is None:
            return found.engine if found is not None else None
        good = found.can_run(trial.model_id) if stay else found.is_for(trial.model_id)
        return found.engine if good else None

    async def _search(self, kind: Kind, search: Search, before: Found | None) -> Engine:
        found = await search.run(await self._looks(kind), self._choices.get(kind), before)
        engine = found.engine
        if before is None or before.engine.name != engine.name:
            search.tell(f"engine: {engine.name}", "info")
        self._memory.note(kind, found)
        return engine

    def _lock(self, name: str) -> asyncio.Lock:
        """The lock of that name for whoever runs on this loop."""
        return self._locks.setdefault(asyncio.get_running_loop(), {}).setdefault(name, asyncio.Lock())

    # ---- all of them ------------------------------------------------------------------------------------------------

    async def list(self) -> builtins.list[EngineCandidate]:
        """Every engine of both kinds, in the order in which they are tried; `in_use` marks the ones in use, or, before
        anything was started, the ones that would be.
        """
        return [candidate for kind in KINDS for _, candidate in await self._listing(kind)]

    async def _listing(self, kind: Kind) -> builtins.list[tuple[Look, EngineCandidate]]:
        prover, looks = await self._prover(), await self._looks(kind)
        postponed = self._arrivals.postponed
        candidates = await asyncio.to_thread(lambda: [describe(look, prover, postponed) for look in looks])
        known = self._memory.recall(kind)
        used = known.engine.name if known is not None else first_usable(candidates, self._choices.get(kind))
        marked = [msgspec.structs.replace(each, in_use=True if each.name == used else None) for each in candidates]
        return builtins.list(zip(looks, marked, strict=True))

    # ---- what users do with them ------------------------------------------------------------------------------------

    async def use(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        """Use this engine and no other one, from now on, in later sessions too.

        Args:
            name: its name or variant; None or 'auto': the choice is ours again.

        Returns:
            The engine; with 'auto' the one that is used now.

        Raises:
            InvalidRequestError: there is no such engine, or a setting names one.
            BinaryError: it does not run.
            GenaiNotebookError: it is a build that is not here, and `install` failed.
        """
        _check_kind(kind)
        if name in (None, AUTO):
            await asyncio.to_thread(self._choices.set, kind, None)
            listing = [candidate for _, candidate in await self._listing(kind)]
            return next((candidate for candidate in listing if candidate.in_use), listing[0])
        look, _ = await self._named(kind, str(name), here=False)
        if own_path(self.settings, kind) is not None:
            raise InvalidRequestError(
                f"{VARIABLES[kind]} names the engine to use.",
                {"field": "name"},
                hint=f"Unset {VARIABLES[kind]} to use another one.",
            )
        if look.installed is not None and look.build is None:
            raise InvalidRequestError(
                f"{look.name} is an older release, which only stands in for the pinned one.",
                {"field": "name"},
                hint=f"%genai engines use {WORDS[kind]} {look.variant}, or name its program in {VARIABLES[kind]}.",
            )
        if look.state == "available":
            await self.install(kind, look.name)
            look, _ = await self._named(kind, look.name)
        await self._prove(look, None)
        await asyncio.to_thread(self._choices.set, kind, look.variant)
        return await self._listed(kind, look)

    async def test(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        """Test an engine anew: that it runs, and, where a model is installed that fits, that it computes.

        Args:
            name: its name or variant; None: the one in use.

        Returns:
            What came of it: 'works', 'usable' (it runs; `reason` says why no more was tried), or 'failed'.

        Raises:
            InvalidRequestError: there is no such engine, or it is not here.
            BinaryError: none is in use.
            ServerError: the model cannot be loaded (MODEL_UNUSABLE).
        """
        _check_kind(kind)
        look, _ = await (self._named(kind, name) if name is not None else self._in_use(kind))
        if look.state in ("available", "missing", "unsupported"):
            raise InvalidRequestError(
                f"{look.name} is not here: {look.reason}.",
                {"field": "name"},
                hint=f"%genai engines install {WORDS[kind]} {look.variant}" if look.state == "available" else None,
            )
        trial = await self.find_trial(kind) if self.find_trial is not None else "no model is at hand"
        self._memory.forget(kind)
        try:
            await self._prove(look, trial if isinstance(trial, Trial) else None)
        except BinaryError as error:
            failed = await self._listed(kind, look)
            details = error.details or {}
            log = details.get("log") or None
            return msgspec.structs.replace(failed, state="failed", reason=details.get("reason"), log=log)
        tested = await self._listed(kind, look)
        if tested.state == "usable" and isinstance(trial, str):
            tested = msgspec.structs.replace(tested, reason=f"it runs; it was not asked to compute: {trial}")
        return tested

    async def install(
        self, kind: Kind, name: str | None = None, *, on_progress: Callable[[EngineProgress], Any] | None = None
    ) -> EngineCandidate:
        """Fetch a build of the pinned release, verify and unpack it, and see that it runs. What is here already stays
        as it is; an interrupted download goes on where it was.

        Args:
            name: its name or variant; None: the best one for this machine.
            on_progress: told how far it is.

        Raises:
            InvalidRequestError: there is no such build, or it is none for this machine.
            BinaryError: it does not run here, or there is none for this machine.
            DownloadError, ChecksumError, InsufficientResourcesError, FileSystemError: it could not be brought here.
        """
        _check_kind(kind)
        look, _ = await (self._named(kind, name, here=False) if name is not None else self._best_build(kind))
        if look.build is None or look.state == "unsupported":
            raise InvalidRequestError(
                f"{look.name} is nothing to install{': ' + look.reason if look.reason else ''}.",
                {"field": "name"},
                hint=HINT if look.variant == "embedded" else "%genai engines lists what there is.",
            )
        heard = deliver_here(on_progress) if on_progress is not None else _to_no_one

        def progress(news: EngineProgress) -> None:
            self._notify("binary-progress", {"server": "engines", **msgspec.to_builtins(news)})
            heard(news)

        prover = await self._prover()
        try:
            await bring(look.build, prover, self._arrivals, progress, patient=True, insist=True)
        except NotNowError as error:
            raise DownloadError(f"{look.name} cannot be fetched: {error}.", {"reason": "unreachable"}) from error
        except UnusableError as error:
            raise unusable(look, error) from error
        self._memory.forget(kind)
        return await self._listed(kind, look)

    async def remove(self, kind: Kind, name: str | None = None) -> EngineCandidate:
        """Delete an installed build; the next start takes another engine, or fetches it again.

        Args:
            name: its name or variant; None: the one in use.

        Raises:
            InvalidRequestError: there is no such engine, or it is not ours to delete.
            BinaryError: it is running.
            FileSystemError: it cannot be deleted.
        """
        _check_kind(kind)
        look, _ = await (self._named(kind, name) if name is not None else self._in_use(kind))
        if look.installed is None:
            raise InvalidRequestError(
                f"{look.name} is no installed build.",
                {"field": "name"},
                hint="Only builds that `install` has fetched can be removed.",
            )
        running = await asyncio.to_thread(EngineRegistry(self.settings.run).engines)
        if any(record.engine == look.name for record in running):
            raise BinaryError(f"{look.name} is running.", {"engine": look.name}, hint="Stop it first: %genai stop")
        self._memory.forget(kind)
        await asyncio.to_thread(self._releases.remove, look.installed)
        return await self._listed(kind, look)

    async def _prove(self, look: Look, trial: Trial | None) -> None:
        prover = await self._prover()
        try:
            if look.state != "found":
                raise UnusableError(look.reason or look.state)
            await prover.prove(look, trial, again=True, tell=_to_no_one, begin=_to_no_one)
        except UnusableError as error:
            raise unusable(look, error) from error

    # ---- one of them ------------------------------------------------------------------------------------------------

    async def _named(self, kind: Kind, name: str, *, here: bool = True) -> tuple[Look, EngineCandidate]:
        """The engine of that name or variant: with `here` one that is here, if there is one, else the pinned build."""
        listing = await self._listing(kind)
        found = [(look, each) for look, each in listing if name in (each.name, look.name, look.variant)]
        if not found:
            valid = list(dict.fromkeys(look.variant for look, _ in listing))
            raise InvalidRequestError(
                f"name: there is no {PROJECTS[kind]} engine {name!r}.",
                {"field": "name", "valid": valid},
                hint=f"There are: {', '.join(valid)}. %genai engines lists them.",
            )
        return next((pair for pair in found if here and pair[0].state == "found"), found[0])

    async def _in_use(self, kind: Kind) -> tuple[Look, EngineCandidate]:
        for look, candidate in await self._listing(kind):
            if candidate.in_use:
                return look, candidate
        raise BinaryError(f"No {PROJECTS[kind]} engine is in use.", {"kind": kind}, hint="%genai engines lists them.")

    async def _best_build(self, kind: Kind) -> tuple[Look, EngineCandidate]:
        for look, candidate in await self._listing(kind):
            if look.build is not None and look.state != "unsupported":
                return look, candidate
        raise BinaryError(
            f"{PROJECTS[kind]} has no release for this machine ({get_platform_key()}).", {"kind": kind}, hint=HINT
        )

    async def _listed(self, kind: Kind, look: Look) -> EngineCandidate:
        """The entry of a place in the list, as it is now."""
        for other, candidate in await self._listing(kind):
            if (other.variant, other.release) == (look.variant, look.release):
                return candidate
        # An older release that has just been removed.
        return EngineCandidate(name=look.name, kind=kind, variant=look.variant, state="missing", reason="removed")

    # ---- where engines are ------------------------------------------------------------------------------------------

    async def _prover(self) -> Prover:
        drivers = drivers_of((await self._system.detect()).gpus)
        return Prover(self._verdicts, drivers, self.settings.run, self._lock("trials"))

    async def _looks(self, kind: Kind) -> builtins.list[Look]:
        """All places, in their order."""
        machine = await self._system.detect()
        platform = get_platform_key()
        builds = [build for build in self._catalog if build.kind == kind and build.platform == platform]
        own = own_path(self.settings, kind)

        def look() -> Iterator[Look]:
            if own is not None:
                yield places.own(kind, str(own))
            yield from places.released(kind, builds, self._releases, machine)
            yield places.wheels(kind)
            yield places.on_path(kind)

        return await asyncio.to_thread(lambda: builtins.list(look()))


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InvalidRequestError(f"kind: must be one of {', '.join(KINDS)}, not {kind!r}.", {"field": "kind"})


def _to_no_one(*_: object) -> None:
    """Nobody listens."""
