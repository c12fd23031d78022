"""llama.cpp's RPC backend: devices of a model on other hosts, and the worker there.

The backend is part of some builds of llama.cpp; otherwise it is loaded from a library
that `make RPC=1` compiles (native/rpc_backend). Its devices are given to the models
that ask for them and are in no list, so no other model gets layers there.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import llama_cpp as lib
import psutil

from edgecs.engines.llama import library
from edgecs.engines.llama.kernels import include_folder
from edgecs.engines.offload import Device
from edgecs.engines.workers.addresses import Address, parse_addresses
from edgecs.engines.workers.protocol import MAJOR, connect
from edgecs.engines.workers.relay import Relay
from edgecs.errors import ConfigError, WorkerError
from edgecs.native import build, rpc_backend
from edgecs.native.compilers import BuildError

_NAME = b"RPC"
_ADD, _START = b"ggml_backend_rpc_add_server", b"ggml_backend_rpc_start_server"
_CPU, _GPU, _INTEGRATED_GPU = 0, 1, 2  # ggml_backend_dev_type
_VERSION = re.compile(r"#define\s+RPC_PROTO_MAJOR_VERSION\s+(\d+)")
_Pointer, _Size, _Text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
_AddServer = ctypes.CFUNCTYPE(_Pointer, _Text)
_StartServer = ctypes.CFUNCTYPE(None, _Text, _Text, _Size, _Size, _Pointer)
_Memory = ctypes.CFUNCTYPE(None, _Pointer, ctypes.POINTER(_Size), ctypes.POINTER(_Size))
# Place of get_memory in ggml_backend_device_i, which begins ggml_backend_device.
_GET_MEMORY = 2

_lock = threading.Lock()
_relays: dict[Address, Relay] = {}  # as llama.cpp keeps its list of servers


def available() -> bool:
    """Whether this installation has the RPC backend."""
    return bool(_by_name() or _file())


def compile_command() -> str:
    """The command that adds the backend to this installation."""
    return f"{sys.executable} -m edgecs.engines.llama.rpc"


class Workers:
    """The devices of some workers, for the models that are opened with them.

    Raises ConfigError if this installation has no RPC backend, WorkerError if a worker
    cannot be used.
    """

    def __init__(self, addresses: str) -> None:
        self._relays = list[Relay]()
        self.pointers = list[int]()  # of ggml_backend_device
        self.devices = list[Device]()
        for address in parse_addresses(addresses):
            relay = _relay_to(address)
            self._relays.append(relay)
            for pointer in _devices_of(relay):
                self.pointers.append(pointer)
                self.devices.append(_described(pointer, address))
            relay.check()

    @property
    def is_lost(self) -> bool:
        """Whether one of the workers was lost."""
        return any(relay.lost is not None for relay in self._relays)

    def check(self) -> None:
        """Raises WorkerError if one of the workers was lost."""
        for relay in self._relays:
            relay.check()

    def with_gpus(self) -> Any:
        """Their devices and the GPUs here, as llama.cpp takes those of a model."""
        every = [*self.pointers, *_gpus()]
        return (_Pointer * (len(every) + 1))(*every)  # ends with NULL

    def named(self, text: str) -> str:
        """A text of llama.cpp with the workers' addresses instead of the relays'."""
        for relay in self._relays:
            text = text.replace(relay.endpoint, str(relay.worker))
        return text


def _relay_to(address: Address) -> Relay:
    """The relay to a worker, which all models share, as it serves one connection.

    A relay whose worker was lost stays with the models that used it.
    """
    with _lock:
        relay = _relays.get(address)
        if relay is None or relay.lost is not None:
            _registry()
            connect(address).close()  # raises an error that says what is wrong
            if relay is not None:
                relay.close()
            relay = _relays[address] = Relay(address)
        return relay


def _devices_of(relay: Relay) -> list[int]:
    """The devices of a worker as llama.cpp registers them."""
    add = _AddServer(_function(_ADD))
    found = add(relay.endpoint.encode())
    relay.check()
    if not found:
        raise WorkerError(
            f"the worker at {relay.worker} has no device: start it with another build "
            "of llama.cpp"
        )
    count = _ggml_function("ggml_backend_reg_dev_count", _Size, _Pointer)(found)
    get = _ggml_function("ggml_backend_reg_dev_get", _Pointer, _Pointer, _Size)
    return [get(found, i) for i in range(count)]


def _described(pointer: int, address: Address) -> Device:
    name = _ggml_function("ggml_backend_dev_name", _Text, _Pointer)(pointer)
    free, total = _memory(pointer)
    return Device(name.decode(), str(address), free, total)


class Offer(NamedTuple):
    """A device that a worker offers; bytes."""

    name: str
    description: str
    memory: int


class WorkerServer:
    """ggml's RPC server with the devices of this machine.

    memory: bytes that the worker says it has, 0: those that are free when it is asked.
    threads: of the CPU. Raises ConfigError if this installation has no RPC backend.
    """

    def __init__(self, *, threads: int, memory: int = 0) -> None:
        self._start = _StartServer(_function(_START))
        self._threads, self._limit = threads, memory
        self._pointers = _offered()
        self._callbacks = list[Any]()  # they must outlive the server
        for pointer in self._pointers:
            if _kind(pointer) == _CPU or memory:
                self._limit_memory(pointer)

    @property
    def devices(self) -> list[Offer]:
        """The devices and the memory that the worker offers."""
        name = _ggml_function("ggml_backend_dev_name", _Text, _Pointer)
        about = _ggml_function("ggml_backend_dev_description", _Text, _Pointer)
        return [
            Offer(name(p).decode(), about(p).decode(), _memory(p)[0])
            for p in self._pointers
        ]

    def run(self, address: Address) -> None:
        """Serve for ever; returns only if the server cannot start or accept.

        One connection is served at a time. The server prints what it does to the C
        library's standard output.
        """
        pointers = (_Pointer * len(self._pointers))(*self._pointers)
        self._start(
            f"{address.host}:{address.port}".encode(),
            None,  # no cache: it would be a folder that every client fills
            self._threads,
            len(pointers),
            ctypes.addressof(pointers),
        )

    def _limit_memory(self, pointer: int) -> None:
        """Have a device state the memory that is free: ggml's CPU states all of it.

        The function is replaced in the device. Its place is internal to ggml, so it is
        tried, and put back if ggml does not call it.
        """
        free, everything = _memory(pointer)
        slot = ctypes.cast(pointer, ctypes.POINTER(_Pointer))
        original = slot[_GET_MEMORY]
        offered = self._limit or free
        on_cpu = _kind(pointer) == _CPU
        called = False

        def state(device: int, free: Any, total: Any) -> None:
            nonlocal called
            called = True
            now = int(psutil.virtual_memory().available) if on_cpu else offered
            free[0] = min(now, self._limit or now)
            total[0] = max(free[0], self._limit or everything)

        callback = _Memory(state)
        slot[_GET_MEMORY] = ctypes.cast(callback, _Pointer).value
        _memory(pointer)
        if called:
            self._callbacks.append(callback)
            return
        slot[_GET_MEMORY] = original
        if self._limit:
            raise ConfigError(
                "this build of llama.cpp does not take a limit: leave --memory out"
            )


def _offered() -> list[int]:
    """The GPUs, or the CPU if there is none, as llama.cpp's own rpc-server has it."""
    return _gpus() or [p for p in _all() if _kind(p) == _CPU]


def _gpus() -> list[int]:
    return [p for p in _all() if _kind(p) in (_GPU, _INTEGRATED_GPU)]


def _all() -> list[int]:
    """The devices of this machine."""
    count = _ggml_function("ggml_backend_dev_count", _Size)()
    get = _ggml_function("ggml_backend_dev_get", _Pointer, _Size)
    return [get(i) for i in range(count)]


def _kind(pointer: int) -> int:
    return int(_ggml_function("ggml_backend_dev_type", ctypes.c_int, _Pointer)(pointer))


def _memory(pointer: int) -> tuple[int, int]:
    """Free and total bytes of a device."""
    free, total = _Size(), _Size()
    ask = _ggml_function(
        "ggml_backend_dev_memory",
        None,
        *(_Pointer, ctypes.POINTER(_Size), ctypes.POINTER(_Size)),
    )
    ask(pointer, ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def _function(name: bytes) -> int:
    """The address of a function of the backend. Raises ConfigError."""
    get = _ggml_function("ggml_backend_reg_get_proc_address", _Pointer, _Pointer, _Text)
    found = get(_registry(), name)
    if not found:
        _refuse(f"its RPC backend lacks {name.decode()}")
    return int(found)


def _registry() -> int:
    """llama.cpp's entry of the backend, which is loaded if need be.

    Raises ConfigError if there is none, or if it has another version of the protocol.
    """
    found = _by_name()
    if not found:
        file = _file()
        if file is None:
            _refuse("it was compiled without it")
        load = _ggml_function("ggml_backend_load", _Pointer, _Text)
        found = load(os.fsencode(file))
    if not found:
        _refuse(f"{file} cannot be loaded")
    version = _protocol()
    if version != MAJOR:
        raise ConfigError(
            f"this llama.cpp speaks version {version} of ggml's RPC protocol, and "
            f"edgecs knows {MAJOR}: install the llama-cpp-python that edgecs asks for"
        )
    return int(found)


def _by_name() -> int | None:
    by_name = _ggml_function("ggml_backend_reg_by_name", _Pointer, _Text)
    return cast(int | None, by_name(_NAME))


def _file() -> Path | None:
    return rpc_backend.find(include_folder(), library.version())


def _protocol() -> int | None:
    """The major version of the protocol, by the header of this build."""
    try:
        header = (include_folder() / "ggml-rpc.h").read_text()
    except (OSError, ValueError):
        return None
    found = _VERSION.search(header)
    return int(found[1]) if found else None


def _refuse(why: str) -> NoReturn:
    raise ConfigError(
        f"this llama.cpp has no RPC backend ({why}), which --rpc and `edgecs worker` "
        f"need: `make RPC=1` in a checkout, or {compile_command()}, compiles it"
    )


def _ggml_function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    # The functions that libllama uses: the bindings load a second copy of libggml from
    # a file of another name, which has a list of backends of its own.
    kind = ctypes.CFUNCTYPE(result, *arguments)
    return cast(Callable[..., Any], kind((name, lib.llama_cpp._lib)))


def main() -> None:
    """`python -m edgecs.engines.llama.rpc`: compile the backend next to the sources."""
    if _by_name():
        print("this llama.cpp has the RPC backend")
        return
    try:
        made = rpc_backend.compile_backend(
            include_folder(), library.folder(), library.version(), build.SOURCES, print
        )
    except BuildError as error:
        raise SystemExit(f"the RPC backend is not compiled: {error}") from error
    print(made)


if __name__ == "__main__":
    main()
