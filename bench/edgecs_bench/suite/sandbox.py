"""Runs untrusted code: no network, and limits on memory, processes and time.

    python -I sandbox.py SECONDS MIB < PROGRAM

Exit code 0: the program ended; 1: it raised, with the last line of the traceback on
stderr; REFUSED: the network cannot be disabled here, so nothing was run. On Linux the
program gets its own namespaces for network and processes, so all its processes end with
it; elsewhere the caller must ensure that. The sandbox does not protect against
malicious code: the program can read the files of the user who runs it.

This file runs as a script and imports nothing of edgecs.
"""

import ctypes
import os
import signal
import sys

REFUSED = 97
_DONE = 42  # of the child: a program that exits early has not passed its tests
_NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_DIE_WITH_PARENT = 1  # prctl
_CAPABILITIES = 0x20080522  # version of the struct
_NOBODY = 65534
_FILE_BYTES, _FILES, _PROCESSES = 1 << 20, 32, 16


def cut_off() -> bool:
    """Enters namespaces without network and other processes; False: not possible."""
    if sys.platform != "linux":
        return "EDGECS_JAILED" in os.environ  # done by sandbox-exec, the parent
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = _NEW_PIDS | _NEW_NETWORK
    if os.geteuid():
        return bool(libc.unshare(wanted | _NEW_USER) == 0)
    return libc.unshare(wanted) == 0 and _give_up_root(libc)


def _give_up_root(libc: ctypes.CDLL) -> bool:
    """Drops all capabilities except access to root's own files.

    Limits on the number of processes do not apply to root.
    """
    os.setresuid(_NOBODY, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    return bool(libc.capset(header, (ctypes.c_uint32 * 6)()) == 0)


def limit(seconds: int, mib: int) -> None:
    """Sets limits for this process and its children."""
    import resource

    def most(what: int, value: int) -> None:
        _, hard = resource.getrlimit(what)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(what, (value, value))

    most(resource.RLIMIT_CPU, seconds)
    most(resource.RLIMIT_FSIZE, _FILE_BYTES)
    most(resource.RLIMIT_NOFILE, _FILES)
    most(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":  # macOS lacks the first, and the second differs there
        most(resource.RLIMIT_AS, mib << 20)
        most(resource.RLIMIT_NPROC, _PROCESSES)


def run(program: str) -> int:
    """Runs the program without input and output."""
    said = sys.stderr
    with open(os.devnull, "r+") as nowhere:
        sys.stdin = sys.stdout = sys.stderr = nowhere
        try:
            exec(compile(program, "answer.py", "exec"), {"__name__": "__main__"})
        except BaseException as error:  # whatever the error is, the answer is wrong
            text = " ".join(str(error).split())[:200]
            print(f"{type(error).__name__}: {text}", file=said, flush=True)
            return 1
    return _DONE


def main() -> int:
    """Runs the program from stdin in a separate process."""
    seconds, mib = int(sys.argv[1]), int(sys.argv[2])
    program = sys.stdin.buffer.read().decode()
    if not cut_off():
        return REFUSED
    child = os.fork()  # the first process in the new namespace; all others die with it
    if child:
        _, status = os.waitpid(child, 0)
        return int(os.waitstatus_to_exitcode(status) != _DONE)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    limit(seconds, mib)
    os._exit(run(program))


if __name__ == "__main__":
    sys.exit(main())
