"""The services of a run as real processes, started together, healthy before the load, gone after it.

A port that was free a moment ago may be taken when the program binds it. So a program that can, takes over a
listening socket that is already bound (`{fd}` in its arguments): no race, and connections wait in its backlog
from the first moment. A foreign program gets a port that is picked (`{port}`); it is started first, and again
on another port when it lost the race.

`outage` takes a service away for a while, as a crash does.

Nothing outlives the `async with` block: not on an exception, Ctrl-C or cancel, nor when this process is
killed (see guard.py). All services are on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from fairlead.errors import InvalidInput, ProcessDied
from fairlead.lab.limits import number_within
from fairlead.lab.ports import bind_port, is_free, listens, port_in_use
from fairlead.lab.process import GuardedProcess, Usage, unwritable
from fairlead.lab.service import Service

__all__ = ["RunningService", "Topology"]

_Result = TypeVar("_Result")
_PLACEHOLDER = re.compile(r"\{(?:([a-z0-9][a-z0-9_-]*)\.)?(fd|port|url)(?::([a-z0-9_-]+))?\}")
_ATTEMPTS = 3
_BACKLOG = 1024
_TIMES_ASKED_FOR_PORT = 1_000  # every 5 ms


class RunningService:
    """A service of a running topology."""

    def __init__(self, service: Service) -> None:
        self.name = service.name
        self.service = service
        self.port = service.port
        self.more_ports: dict[str, int] = {}
        self._sockets: list[socket.socket] = []
        self._process: GuardedProcess | None = None

    @property
    def url(self) -> str:
        """http://127.0.0.1:port, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def process(self) -> GuardedProcess:
        """Its process; raises ProcessDied before the launch."""
        if self._process is None:
            raise ProcessDied(f"{self.name} was never launched: enter the topology first")
        return self._process

    @property
    def pid(self) -> int:
        """Process id of the program itself."""
        return self.process.pid

    @property
    def log(self) -> Path:
        """File that holds its stdout and stderr."""
        return self.process.log

    def usage(self) -> Usage:
        """CPU and memory of the program and its descendants, now."""
        return self.process.usage()

    def _reserve(self) -> None:
        """Fixes the ports; a {fd} service's socket listens from here on."""
        self._release()
        # All are held until the launch, so that no two services are given the same port.
        for name in ("", *self.service.more_ports):
            held = bind_port(self.name, 0 if name else self.service.port)
            self._sockets.append(held)
            if name:
                self.more_ports[name] = held.getsockname()[1]
            else:
                self.port = held.getsockname()[1]
        if self.service.takes_socket:
            self._sockets[0].listen(_BACKLOG)

    def _release(self) -> None:
        while self._sockets:
            self._sockets.pop().close()


class Topology:
    """Services that live as long as the `async with` block.

    Entering launches them and returns when all are ready. Those that bind a port themselves start one after
    the other in the order given, each waited for; then all those that take a socket start at once. Leaving
    ends them in reverse order, one by one. Raises PortInUse, ProcessDied (the message holds the last lines of
    the log) or InvalidInput; then, too, nothing is left running.
    """

    def __init__(self, services: Sequence[Service], *, log_directory: Path) -> None:
        names = [service.name for service in services]
        if not services or len(set(names)) != len(names):
            raise InvalidInput(f"services: {names} must be at least one, each with a name of its own")
        self._running = {service.name: RunningService(service) for service in services}
        self._log_directory = log_directory
        self._launched: list[RunningService] = []
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._failed: ProcessDied | None = None
        self._died = asyncio.Event()
        for running in self._running.values():
            self._words(running, dry=True)

    def __getitem__(self, name: str) -> RunningService:
        try:
            return self._running[name]
        except KeyError:
            raise InvalidInput(
                f"no service {name!r} in this topology; it has {', '.join(self._running)}"
            ) from None

    @property
    def failed(self) -> ProcessDied | None:
        """The first service that ended by itself, as an error; None while all run."""
        return self._failed

    async def watch(self) -> None:
        """Waits until a service ends by itself, then raises ProcessDied naming it, its end and its log."""
        await self._died.wait()
        if self._failed is not None:
            raise self._failed

    async def during(self, work: Awaitable[_Result]) -> _Result:
        """The result of `work`; if a service ends first, `work` is cancelled, awaited, and ProcessDied
        raised.
        """
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(self._died.wait())
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and self._failed is not None:
                raise self._failed
            return await task
        finally:
            for each in (task, watch):
                each.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def outage(self, name: str, seconds: float) -> None:
        """Kills the service with SIGKILL, refuses connections for `seconds`, starts it again; returns once it is ready.

        Its end is no death that `watch` reports. While it starts, connections wait in its socket, so this is for
        services that take theirs ({fd}). What it has logged stays in NAME.1.log, NAME.2.log and so on. An outage
        that is cancelled, or after which it does not come back, is a death.
        """
        number_within("seconds", seconds, 0.0, 600.0)
        running = self[name]
        if running.service.picks_port:
            raise InvalidInput(
                f"outage of {name}: it binds a port of its own, which could be lost; pass it {{fd}}"
            )
        watcher = self._watchers.pop(name, None)
        if watcher is None:
            raise InvalidInput(f"outage of {name}: it does not run, or is out already")
        try:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
            running.process.kill()
            _keep_log(running.log)
            # SIGKILL is sent, not waited for: for a moment the dying process still holds the port.
            for _ in range(_TIMES_ASKED_FOR_PORT):
                if is_free(running.port):
                    break
                await asyncio.sleep(0.005)
            # Bound and not listening: the kernel refuses, and nobody else can take the port.
            running._sockets.append(bind_port(name, running.port))
            await asyncio.sleep(seconds)
            running._sockets[0].listen(_BACKLOG)
            self._launched.remove(running)
            self._launch(running)
            await self._until_ready(running)
        except BaseException as error:
            self._failed = self._failed or (
                error
                if isinstance(error, ProcessDied)
                else ProcessDied(f"{name} was not brought back: {error!r}")
            )
            self._died.set()
            raise
        self._watchers[name] = asyncio.create_task(self._watch(running))

    async def __aenter__(self) -> Topology:
        if self._launched:
            raise InvalidInput("a topology is entered once; make a new one for the next run")
        try:
            self._log_directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable("log_directory", self._log_directory, error) from error
        try:
            for running in self._running.values():
                running._reserve()
            for running in self._running.values():
                if running.service.picks_port:
                    await self._start_on_its_own_port(running)
            takers = [running for running in self._running.values() if not running.service.picks_port]
            for running in takers:
                self._launch(running)
            await _first_error([self._until_ready(running) for running in takers])
        except BaseException:
            await self._end()
            raise
        for running in self._launched:
            self._watchers[running.name] = asyncio.create_task(self._watch(running))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _start_on_its_own_port(self, running: RunningService) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            self._launch(running)
            try:
                await self._until_ready(running)
                return
            except ProcessDied as error:
                ports = (running.port, *running.more_ports.values())
                taken = next((port for port in ports if not is_free(port)), None)
                if taken is None:
                    raise
                if taken == running.service.port or attempt == _ATTEMPTS or self._is_known(running):
                    raise port_in_use(running.name, taken) from error
            await running.process.end()
            self._launched.remove(running)
            running._reserve()

    def _is_known(self, running: RunningService) -> bool:
        """Whether a launched service was told this one's address, so that it can no longer move."""
        return any(
            match[1] == running.name
            for other in self._launched
            for word in (*other.service.argv, *other.service.env.values())
            for match in _PLACEHOLDER.finditer(word)
        )

    def _launch(self, running: RunningService) -> None:
        service = running.service
        argv, env = self._words(running)
        program = argv[0] if service.cwd is None or "/" not in argv[0] else str(service.cwd / argv[0])
        if shutil.which(program) is None:
            raise InvalidInput(f"{service.name}: no program {argv[0]!r}; install it, or give its full path")
        descriptors = (running._sockets[0].fileno(),) if service.takes_socket else ()
        for held in running._sockets[len(descriptors) :]:
            held.close()
        running._process = GuardedProcess.launch(
            service.name,
            argv,
            log=self._log_directory / f"{service.name}.log",
            grace=service.grace,
            env=env,
            cwd=service.cwd,
            pass_fds=descriptors,
        )
        # A copy kept open here would go on accepting for a program that has died.
        running._release()
        self._launched.append(running)

    def _words(self, running: RunningService, *, dry: bool = False) -> tuple[list[str], dict[str, str]]:
        def fill(match: re.Match[str]) -> str:
            other, kind, name = match.groups()
            if other is not None and other not in self._running:
                raise InvalidInput(f"{match[0]} of {running.name}: no service {other!r} in this topology")
            target = running if other is None else self._running[other]
            if name is not None and (kind != "port" or name not in target.service.more_ports):
                raise InvalidInput(f"{match[0]} of {running.name}: {target.name} has no port named {name!r}")
            if kind == "fd" and (other is not None or not target.service.takes_socket):
                raise InvalidInput(f"{match[0]} of {running.name}: only its own {{fd}} can be given, in argv")
            if dry:
                return ""
            if kind == "fd":
                return str(running._sockets[0].fileno())
            if kind == "url":
                return target.url
            return str(target.port if name is None else target.more_ports[name])

        service = running.service
        return (
            [_PLACEHOLDER.sub(fill, word) for word in service.argv],
            {name: _PLACEHOLDER.sub(fill, value) for name, value in service.env.items()},
        )

    async def _until_ready(self, running: RunningService) -> None:
        service, process = running.service, running.process
        answer = "no answer"
        limit = time.monotonic() + service.ready_within
        while time.monotonic() < limit and not process.ended.is_set():
            probe = asyncio.ensure_future(service.ready.probe(running.port))
            ended = asyncio.ensure_future(process.ended.wait())
            try:
                await asyncio.wait(
                    (probe, ended), timeout=limit - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
                )
                if probe.done():
                    try:
                        answer = probe.result()
                    except (OSError, ValueError) as error:
                        answer = str(error) or "no answer"
                    if not answer:
                        if process.pid and (service.takes_socket or listens(process.pid, running.port)):
                            return
                        # Ours has yet to bind it, or failed to: whoever answers is not the one we started.
                        answer = f"port {running.port} is answered by another process"
            finally:
                for each in (probe, ended):
                    each.cancel()
                await asyncio.gather(probe, ended, return_exceptions=True)
            await asyncio.sleep(0.02)
        raise self._death(running, f"was not ready within {service.ready_within:g} s ({answer})")

    def _death(self, running: RunningService, otherwise: str) -> ProcessDied:
        process = running.process
        words = process.last_words()
        what = f"died with {process.ending}" if process.ended.is_set() else otherwise
        return ProcessDied(
            f"{running.name} {what}; log {process.log}" + (f": {words}" if words else " is empty")
        )

    async def _watch(self, running: RunningService) -> None:
        await running.process.ended.wait()
        self._failed = self._failed or self._death(running, "")
        self._died.set()

    async def _end(self) -> None:
        """Ends all in reverse order; a cancel kills what is left instead of waiting, and then goes on."""
        for watcher in self._watchers.values():
            watcher.cancel()
        for running in self._running.values():
            running._release()
        try:
            for running in reversed(self._launched):
                await running.process.end()
        finally:
            for running in reversed(self._launched):
                running.process.kill()
            await asyncio.gather(*self._watchers.values(), return_exceptions=True)


def _keep_log(log: Path) -> None:
    """Out of the way of the next process, which begins its log anew."""
    number = 1
    while (kept := log.with_name(f"{log.stem}.{number}{log.suffix}")).exists():
        number += 1
    log.rename(kept)


async def _first_error(works: Sequence[Awaitable[None]]) -> None:
    """Awaits all; the first error cancels the rest and is raised as it is, not in a group."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if task in done:
            task.result()
