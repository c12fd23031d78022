"""Other runtimes as modes of a bench, each in its own blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgecs_bench.peers import Config, Peer, PeerFailed, PeerProcess, resolve
from edgecs_bench.run.answers import Said
from edgecs_bench.run.blocks import ModeFailed
from edgecs_bench.run.modes import PLAIN, Asked, Mode, ModeFactory
from edgecs_bench.run.runner import Part


@dataclass(frozen=True)
class PeerMode:
    """A configuration of a peer, which answers in its own process."""

    name: str
    about: str
    process: PeerProcess
    greedy_only: bool = True

    @property
    def version(self) -> str | None:
        """The version of the runtime."""
        return self.process.version

    @property
    def pid(self) -> int | None:
        """Its process."""
        return self.process.pid

    def answer(self, asked: Asked) -> Said:
        """Answers from an empty cache. Raises ModeFailed."""
        try:
            said = self.process.answer(asked.ids, asked.text, asked.most)
        except PeerFailed as error:
            raise ModeFailed(str(error)) from error
        return Said(
            said.tokens,
            said.ttft_s,
            said.decode_s,
            tested=said.tested,
            accepted=said.accepted,
            peak_rss_mib=said.peak_rss_mib,
        )


@dataclass(frozen=True)
class Absent:
    """A peer that cannot be started; it gives a row with its error."""

    name: str
    about: str
    error: str
    greedy_only: bool = True
    version: str | None = None
    pid: int | None = None

    def answer(self, asked: Asked) -> Said:
        """Raises ModeFailed."""
        raise ModeFailed(self.error)


Drafters = Mapping[str, Path | None]
"""Files by the kinds of `peers.table`; None: it is in the target's file."""

_KINDS = {"eagle3": "eagle3", "dflash": "dflash", "gemma4-assistant": "mtp"}


def drafters_by_kind(target: Path, drafts: Sequence[Path]) -> Drafters:
    """The first GGUF of each kind, and the head in the target's own file.

    Raises ModelError for a file that is not a GGUF.
    """
    from edgecs.engines.llama.heads.files import has_own_head
    from edgecs.engines.llama.heads.fit import header_of

    found: dict[str, Path | None] = {}
    for path in drafts:
        if path.suffix == ".gguf":
            found.setdefault(_KINDS.get(header_of(path).architecture, "model"), path)
    if has_own_head(target):
        found.setdefault("mtp", None)
    return found


def parts(
    names: Sequence[str], root: Path, drafters: Drafters, say: Callable[[str], None]
) -> list[Part]:
    """A part for every selected configuration, see `peers.resolve`.

    root: the folder of the peers' environments. drafters: for the configurations that
    need one. Raises ConfigError.
    """
    return [
        _part(peer, name, config, root, drafters.get(str(config.get("draft"))), say)
        for peer, name, config in resolve(names, drafters)
    ]


def _part(
    peer: Peer,
    name: str,
    config: Config,
    root: Path,
    draft: Path | None,
    say: Callable[[str], None],
) -> Part:
    label = f"{peer.name}/{name}"
    about = ", ".join(f"{key} {value}" for key, value in config.items()) or name

    def open_part(workshop: ModeFactory, closing: ExitStack) -> tuple[str, list[Mode]]:
        loaded = workshop.loaded
        other: Mode
        try:
            process = PeerProcess(
                peer,
                config,
                model=loaded.model.path,
                draft=draft,
                n_ctx=loaded.target.n_ctx,
                threads=loaded.target.threads,
                root=root,
                progress=say,
            )
        except PeerFailed as error:
            other = Absent(label, about, str(error))
        else:
            other = PeerMode(label, about, closing.enter_context(process))
        return label, [workshop.make(PLAIN), other]

    return open_part
