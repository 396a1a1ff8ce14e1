"""The guard: a tiny program between an owner and an engine. Runs by path, with the standard library only.

    python -I -S guard.py ENGINE ARG …

It starts the engine in a session of its own (so that a notebook's Interrupt does not reach it) and waits for whichever
comes first: the engine's end, which it reports, or the owner's, which it sees as the end of its stdin however the owner
died; then it ends the engine's whole process group.

    stdin   from the owner: "t" asks the engine to end (SIGTERM), "k" ends it (SIGKILL); closed: ends it
    stdout  to the owner:   "pid N", then "exit CODE" (negative: signal number), or "error TEXT"
    stderr  the engine's own output, both streams

Every start of an engine waits for this program, so it imports little: no subprocess or threading where POSIX allows.
"""

import os
import signal
import sys

#: Seconds between looks at the parent's pid: a forked child of the owner may keep the pipe open after its death.
PARENT_CHECK = 2.0


def say(text: str) -> None:
    try:  # noqa: SIM105 - importing contextlib would cost start-up time
        os.write(1, (text + "\n").encode())
    except OSError:
        pass  # the owner is gone; the end of stdin says so too


def main(argv: "list[str]") -> int:
    try:
        return guard_posix(argv) if os.name == "posix" else guard_windows(argv)
    except OSError as error:
        say(f"error {error.strerror or error}: {argv[0]}")
        return 127


# ---- POSIX: one thread, one select ----------------------------------------------------------------------------------


def guard_posix(argv: "list[str]") -> int:
    import select

    owner = os.getppid()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # What is meant for the owner's terminal must not end the guard before the engine.
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    engine = start_in_own_session(argv)
    say(f"pid {engine}")
    while True:
        ready = select.select([0, reader], [], [], PARENT_CHECK)[0]
        if reader in ready:
            os.read(reader, 512)
            pid, status = os.waitpid(engine, os.WNOHANG)
            if pid:
                signal_group(engine, signal.SIGKILL)  # what the engine forked goes with it
                say(f"exit {os.waitstatus_to_exitcode(status)}")
                return 0
        command = read_command() if 0 in ready else b"?"
        if not command or os.getppid() != owner:
            signal_group(engine, signal.SIGKILL)
            os.waitpid(engine, 0)
            return 0
        if command in COMMANDS:
            signal_group(engine, COMMANDS[command])


TERMINAL_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGTERM") if hasattr(signal, name)]
COMMANDS = {b"t": signal.SIGTERM, b"k": getattr(signal, "SIGKILL", signal.SIGTERM)}


def read_command() -> bytes:
    try:
        return os.read(0, 1)
    except OSError:
        return b""


def start_in_own_session(argv: "list[str]") -> int:
    null = os.open(os.devnull, os.O_RDONLY)
    return os.posix_spawnp(
        argv[0],
        argv,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
        setsid=True,
        # Ignored signals stay ignored over exec: the engine must still end on SIGTERM.
        setsigdef=[*TERMINAL_SIGNALS, signal.SIGCHLD, signal.SIGPIPE],
    )


def signal_group(engine: int, number: int) -> None:
    try:  # noqa: SIM105
        os.killpg(engine, number)
    except (ProcessLookupError, PermissionError):
        pass


# ---- Windows: no groups to signal, no select on pipes ---------------------------------------------------------------


def guard_windows(argv: "list[str]") -> int:
    import subprocess
    import threading

    engine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=2, stderr=2, creationflags=0x200)

    def obey() -> None:
        while read_command() and engine.poll() is None:
            end_tree()
        end_tree()

    def end_tree() -> None:
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(engine.pid)], capture_output=True, check=False)

    say(f"pid {engine.pid}")
    threading.Thread(target=obey, daemon=True).start()
    say(f"exit {engine.wait()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
