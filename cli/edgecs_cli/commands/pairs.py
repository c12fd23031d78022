"""Which drafters fit which targets, and their expected speed-up here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecs.calibrate.bundled_drafters import all_bundled, expected_speedup
from edgecs.calibrate.profile import Profiles
from edgecs.calibrate.speculation_profile import NONSENSE, Known
from edgecs.errors import EdgecsError, ModelError
from edgecs.hub.compatibility import check_same, vocabulary_hash
from edgecs.hub.drafter_manifest import NAME, DrafterManifest, read_drafter
from edgecs.runtime.recipe import HEAD


@dataclass(frozen=True)
class Pair:
    """A target and a drafter. reason: why they do not fit, None: they do.

    expected: speed-up of greedy answers over plain decoding, None: unknown.
    """

    target: str
    drafter: str
    reason: str | None
    expected: float | None

    @property
    def about(self) -> str:
        """A description in words."""
        if self.reason:
            return self.reason
        if self.expected is None:
            return "fits; the speed-up here is unknown: run edgecs tune"
        if self.expected <= 1:
            return "fits; no speed-up is expected here"
        return f"fits; {self.expected:.2f} x plain decoding expected here"


@dataclass(frozen=True)
class _One:
    """A model file, a head's file, or the folder of an ONNX drafter."""

    path: Path
    pieces: Sequence[bytes]
    manifest: DrafterManifest | None
    head: bool = False  # a GGUF that only drafts

    @property
    def name(self) -> str:
        return self.path.name if self.manifest is None else self.manifest.name


def find_pairs(
    models: Sequence[Path], profiles: Profiles
) -> tuple[list[Pair], list[str]]:
    """Pairs every model with every smaller one, with folders and bundled drafters.

    Also returns a sentence for every file that could not be read. Weights are not
    loaded.
    """
    from edgecs.engines.llama.heads.files import has_own_head

    files, problems = [], []
    folders = [path for path in models if path.is_dir()]
    folders += [p for p in all_bundled().values() if p not in folders]
    for path in [*dict.fromkeys(p for p in models if not p.is_dir()), *folders]:
        try:
            files.append(_read(path))
        except EdgecsError as error:
            problems.append(str(error))
    targets = [one for one in files if one.manifest is None and not one.head]
    found = []
    for target in targets:
        if has_own_head(target.path):
            found.append(Pair(target.name, HEAD, None, None))
        size = target.path.stat().st_size
        for other in files:
            smaller = other.manifest or other.head or other.path.stat().st_size < size
            if other is not target and smaller:
                found.append(_pair(target, other, profiles))
    return found, problems


def _read(path: Path) -> _One:
    from edgecs.engines.gguf_header import architecture
    from edgecs.engines.llama.model import HEADS
    from edgecs.engines.llama.tokenizer import read_pieces

    if (path / NAME).is_file():
        manifest = read_drafter(path)
        return _One(path, manifest.pieces() or (), manifest)
    if not path.is_file():
        raise ModelError(f"{path} is neither a .gguf file nor an ONNX drafter's folder")
    return _One(path, read_pieces(path), None, architecture(path) in HEADS)


def _pair(target: _One, drafter: _One, profiles: Profiles) -> Pair:
    from edgecs.engines.llama.heads.files import check_files

    manifest, reason, expected = drafter.manifest, None, None
    try:
        check_same(
            target.pieces,
            manifest.vocabulary if manifest else vocabulary_hash(drafter.pieces),
            drafter.pieces or None,
            target_name=target.name,
            drafter_name=drafter.name,
        )
        if drafter.head:
            check_files(drafter.path, target.path)
    except ModelError as error:
        reason = str(error)
    else:
        if manifest:
            times = next(_times(target, profiles), None)
            expected = expected_speedup(drafter.path, times) if times else None
    return Pair(target.name, drafter.name, reason, expected)


def _times(target: _One, profiles: Profiles) -> Iterator[Sequence[float]]:
    """Seconds of a target's calls by width, from its profiles."""
    for _, profile in profiles.all():
        if profile and profile.key.model == target.path.stem:
            try:
                yield Known.of(profile).costs.times(0)
            except NONSENSE:
                continue
