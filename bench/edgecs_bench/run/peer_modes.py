"""Other runtimes as modes of a bench, each in blocks of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgecs_bench.peers import Config, Peer, PeerFailed, PeerProcess, resolve
from edgecs_bench.run.answers import Said
from edgecs_bench.run.blocks import ModeFailed
from edgecs_bench.run.modes import PLAIN, Asked, Mode, Workshop
from edgecs_bench.run.runner import Part


@dataclass(frozen=True)
class PeerMode:
    """A configuration of a peer, whose process answers."""

    name: str
    about: str
    process: PeerProcess
    greedy_only: bool = True

    @property
    def version(self) -> str | None:
        """Of the runtime."""
        return self.process.version

    @property
    def pid(self) -> int | None:
        """Its process."""
        return self.process.pid

    def answer(self, asked: Asked) -> Said:
        """One answer from empty cells. Raises ModeFailed."""
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
    """A peer that cannot be started: a row with its error."""

    name: str
    about: str
    error: str
    greedy_only: bool = True
    version: str | None = None
    pid: int | None = None

    def answer(self, asked: Asked) -> Said:
        """Raises ModeFailed."""
        raise ModeFailed(self.error)


def parts(
    names: Sequence[str], root: Path, draft: Path | None, say: Callable[[str], None]
) -> list[Part]:
    """A part for every configuration that is named, see `peers.resolve`.

    root: where the environments of peers are kept. draft: a smaller GGUF, for those
    that draft with one. Raises ConfigError.
    """
    wanted = resolve(names, has_draft=draft is not None)
    return [
        _part(peer, name, config, root, draft, say) for peer, name, config in wanted
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

    def open_part(workshop: Workshop, closing: ExitStack) -> tuple[str, list[Mode]]:
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
