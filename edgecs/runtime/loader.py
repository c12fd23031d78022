"""Load targets and drafters from model files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgecs.calibrate.profile import Key, fingerprint
from edgecs.chat.archive import Owner
from edgecs.core.draft import Drafter, LanguageModel
from edgecs.decoding.cascade import NamedModel
from edgecs.decoding.exactness import Limits
from edgecs.decoding.excerpt_reader import ExcerptReader
from edgecs.decoding.static_schedule import Schedule
from edgecs.engines.host import cpu_name
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ModelError, OutOfMemory
from edgecs.hub.compatibility import check_same, vocabulary_hash
from edgecs.runtime.opening import (
    many_threads,
    no_gpu,
    open_model,
    with_layers_that_fit,
)
from edgecs.sampling.chain import Choices, Rule, always, chooser, greedy
from edgecs.sampling.penalties import Breakers, sequence_breakers
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session

if TYPE_CHECKING:
    from edgecs.engines.llama.language_model import LlamaLM
    from edgecs.engines.llama.model import LlamaModel
    from edgecs.grammar.lazy import LazyGrammar
    from edgecs.grammar.mask import Grammar

_GREEDY = always(greedy)
# Stands for the head in the file of the target; no file has this name.
OWN_HEAD = Path("\0head")
# Options that affect the layout of weights in memory.
_WEIGHTS = ("repack", "mmap", "huge_pages", "kernels")


@dataclass(frozen=True)
class Loaded:
    """A target in memory; a context manager that frees it."""

    model: LlamaModel
    target: LlamaLM
    cancel: threading.Event
    note: str | None  # result of automatic offloading, None: not used
    options: LoadOptions
    seconds: float  # load time
    warnings: Sequence[str] = ()  # requests that cannot be met
    findings: Path | None = None  # see `load`
    no_kernels: str | None = None  # why edgecs' kernels are not used by default

    def key(self) -> Key:
        """The key of this target's measurements; reads samples of the file."""
        from edgecs.engines.llama import huge_pages

        build, device = build_and_device()
        kernels = self.model.kernels
        used = replace(
            self.options,
            n_gpu_layers=self.model.offload.layers,
            threads=self.target.threads,
            repack=self.options.repack and not kernels,
            huge_pages=self.options.huge_pages and huge_pages.available(),
        )
        return Key(
            model=self.model.path.stem,
            fingerprint=fingerprint(self.model.path),
            build=build,
            device=device,
            options=used,
            kernels=kernels.key if kernels else "llama",
        )

    def owner(self) -> Owner:
        """The model that saved conversations belong to; reads samples of the file."""
        key = self.key()
        return Owner(key.model, key.fingerprint, key.bits, self.target.vocab_size)

    def session(
        self,
        drafters: Sequence[Drafter] = (),
        draft_max: int | Sequence[int] = 0,
        *,
        schedule: Schedule | None = None,
        limits: Limits | None = None,
        rule: Rule = _GREEDY,
        sequence: int = 0,
    ) -> Session:
        """A session over the target, see `Session`; one of a sequence at a time."""
        return Session(
            self.target,
            self.model.vocabulary,
            drafters,
            draft_max=draft_max,
            schedule=schedule,
            limits=limits,
            rule=rule,
            sequence=sequence,
        )

    def rule(
        self, sampling: Sampling, grammar: Grammar | LazyGrammar | None = None
    ) -> Rule:
        """How tokens are chosen with this target's vocabulary.

        Raises ConfigError for settings that do not fit the vocabulary.
        """
        breakers = self._breakers(sampling) if sampling.dries else {}
        size = self.target.vocab_size
        if grammar is None:
            return always(chooser(sampling, size, breakers=breakers))
        from edgecs.grammar.draft_mask import DraftMask

        trie = self.model.vocabulary.trie

        def choices(start: int) -> Choices:
            # Separate grammar states for both, so that neither is rewound repeatedly.
            masks = grammar.over(trie), DraftMask(grammar.over(trie))
            return Choices(
                *(
                    chooser(sampling, size, breakers=breakers, mask=mask, start=start)
                    for mask in masks
                )
            )

        return choices

    def _breakers(self, sampling: Sampling) -> Breakers:
        vocabulary = self.model.vocabulary
        return sequence_breakers(
            sampling.dry_breakers,
            vocabulary.pieces(),
            lambda text: vocabulary.encode(text, document=False).tolist(),
        )

    @contextmanager
    def with_options(self, options: LoadOptions) -> Iterator[LlamaLM]:
        """A temporary second context of the model with other options.

        Weights are shared unless their layout differs. Raises OutOfMemory, ModelError,
        Cancelled.
        """
        from edgecs.engines.llama.language_model import LlamaLM

        with ExitStack() as closing:
            if all(getattr(options, n) == getattr(self.options, n) for n in _WEIGHTS):
                target = LlamaLM(self.model, options, self.cancel)
            else:
                opened = open_model(
                    self.model.path, options, self.cancel, self.findings
                )
                closing.callback(opened.model.close)
                target = opened.scorer
            closing.callback(target.close)
            yield target

    def close(self) -> None:
        """Free context and weights; may be called again."""
        self.target.close()
        self.model.close()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True)
class LoadedDrafter:
    """A drafter's model in memory; a context manager that frees it."""

    name: str
    model: LanguageModel
    about: str  # readable description of the model and where it runs
    parameters: int | None  # weights; None: not known
    close: Callable[[], None]  # may be called again
    fingerprint: str = ""  # of its files, see `profile.fingerprint`
    right: float | None = None  # share of right tokens, from its manifest
    # The same weights for the conversation in another sequence of the target, to be
    # closed; None: it has sequences of its own, as many as `model.sequences`.
    beside: Callable[[int], LanguageModel] | None = None
    size: int = 0  # bytes of one conversation, without weights

    @property
    def named(self) -> NamedModel:
        """The drafter as a member of a cascade."""
        return NamedModel(self.name, self.model, self.right)

    @property
    def whole(self) -> LanguageModel:
        """The model without excerpts, whose rows depend on the context only."""
        model = self.model
        return model.model if isinstance(model, ExcerptReader) else model

    def __enter__(self) -> LoadedDrafter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def build_and_device() -> tuple[str, str]:
    """The parts of a profile's key that describe the engine and this machine."""
    from edgecs.engines.llama import library

    devices = [d.description for d in library.devices()]
    build = f"llama-cpp-python {library.version()}, {library.system_info()}"
    return build, ", ".join([cpu_name(), *devices])


def load(
    path: Path,
    options: LoadOptions,
    *,
    cancel: threading.Event | None = None,
    findings: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Loaded:
    """Load a GGUF as target; setting `cancel` stops loading and, later, answers.

    With automatic offloading, a failed allocation is retried with fewer GPU layers.
    edgecs' kernels are used where available, see `LoadOptions`. Weights are not
    repacked for llama.cpp's kernels where that would crash this build. `findings` is a
    file that stores the trial results of both, next to a folder for kernels that are
    compiled at first use; without it every process runs the trials, and only kernels
    that are already compiled are used. say: called before and after that. Raises
    ModelError, OutOfMemory, Cancelled, and ConfigError for unavailable kernels.
    """
    cancel = cancel or threading.Event()
    without_gpu = no_gpu(options)

    def open_with(options: LoadOptions, note: str | None) -> Loaded:
        began = time.perf_counter()
        opened = open_model(path, options, cancel, findings, say=say)
        took = time.perf_counter() - began
        said = without_gpu, many_threads(options.threads), opened.warning
        warnings = [text for text in said if text]
        return Loaded(
            opened.model,
            opened.scorer,
            cancel,
            note,
            opened.options,
            took,
            warnings,
            findings,
            opened.no_kernels,
        )

    return with_layers_that_fit(path, options, open_with)


def load_drafter(
    path: Path, target: Loaded, options: LoadOptions | None = None
) -> LoadedDrafter:
    """Load a drafter for `target`: a GGUF file, or the folder of an ONNX export.

    path: OWN_HEAD for the MTP head in the target's own file. A GGUF is another model or
    a head, as its metadata says. options: a GGUF uses all of them, ONNX only
    `threads`, where 0 means one, and `n_ctx`. The context size of a GGUF defaults to
    the target's, and is at most that and the trained one; behind a longer context it
    reads an excerpt. An ONNX decoder reads the last tokens, or with `n_ctx` an excerpt.
    A head has no context size. Drafters are always loaded on this host. Raises
    ModelError if the vocabularies differ or a head does not fit the target,
    OutOfMemory, Cancelled.
    """
    options = replace(options or LoadOptions(), heads=False, rpc="")
    if path == OWN_HEAD:
        from edgecs.runtime.heads import load_own_head

        _check_local(target, "the MTP head")
        return load_own_head(target, options)
    if path.is_dir():
        return _load_onnx(path, target, options)
    if kind := _head_kind(path):
        from edgecs.runtime.heads import load_head

        _check_local(target, path.name)
        return load_head(kind, path, target, options)
    return _load_gguf(path, target, options)


def _check_local(target: Loaded, head: str) -> None:
    """Raises ModelError for a head whose target has layers on other hosts."""
    if target.options.rpc:
        raise ModelError(
            f"{head} computes with tensors of its model, which are on other hosts "
            "(--rpc): give a drafter that is a model of its own, or none"
        )


def _load_gguf(path: Path, target: Loaded, options: LoadOptions) -> LoadedDrafter:
    """A smaller model; where its sequences do not fit together, it has one."""
    size, whole = target.target.vocab_size, target.target.n_ctx
    options = replace(options, n_ctx=min(options.n_ctx or whole, whole))

    def open_with(options: LoadOptions, note: str | None) -> LoadedDrafter:
        opened = open_model(path, options, target.cancel, target.findings, size)
        model, scorer = opened.model, opened.scorer

        def close() -> None:
            scorer.close()
            model.close()

        with ExitStack() as undo:
            undo.callback(close)
            theirs = model.vocabulary.pieces()
            check_same(
                target.model.vocabulary.pieces(),
                vocabulary_hash(theirs),
                theirs,
                target_name=target.model.path.name,
                drafter_name=path.name,
            )
            undo.pop_all()
        where = model.offload.describe()
        about = f"{model.description}, {where}{scorer.threads} CPU threads"
        if opened.warning:
            about += ", weights not repacked"
        reader: LanguageModel = scorer
        if scorer.n_ctx < whole:
            reader = ExcerptReader(scorer)
            about += f", {_excerpts(scorer.n_ctx)}"
        return LoadedDrafter(
            path.stem,
            reader,
            about,
            model.parameters,
            close,
            fingerprint(path),
            size=model.kv_bytes(scorer.n_ctx, replace(options, sequences=1)),
        )

    try:
        return with_layers_that_fit(path, options, open_with)
    except OutOfMemory:
        if options.sequences == 1:
            raise
    return with_layers_that_fit(path, replace(options, sequences=1), open_with)


def _excerpts(span: int) -> str:
    """What a drafter reads that has room for `span` tokens."""
    return f"reads up to {span} tokens, of longer contexts an excerpt"


def _head_kind(path: Path) -> str | None:
    """The architecture of a file that is a head; None: it is another model."""
    from edgecs.engines.gguf_header import architecture
    from edgecs.engines.llama.model import HEADS

    found = architecture(path)
    return found if found in HEADS else None


def _load_onnx(folder: Path, target: Loaded, options: LoadOptions) -> LoadedDrafter:
    from edgecs.engines.onnx.decoder import OnnxModel
    from edgecs.engines.onnx.head import OnnxHead
    from edgecs.hub.drafter_manifest import read_drafter

    manifest = read_drafter(folder)
    ours = target.model.vocabulary.pieces()
    same = vocabulary_hash(ours) == manifest.vocabulary
    check_same(
        ours,
        manifest.vocabulary,
        None if same else manifest.pieces(),
        target_name=target.model.path.name,
        drafter_name=manifest.name,
    )
    threads = options.threads or 1
    size, cancel = target.target.vocab_size, target.cancel

    def opened(
        sequence: int, like: OnnxModel | OnnxHead | None
    ) -> OnnxModel | OnnxHead:
        if manifest.kind == "head":
            states = target.target.note_states(sequence)
            head = like if isinstance(like, OnnxHead) else None
            return OnnxHead(
                manifest, states, size, cancel, threads=threads, beside=head
            )
        decoder = like if isinstance(like, OnnxModel) else None
        return OnnxModel(manifest, size, cancel, threads=threads, beside=decoder)

    span = min(options.n_ctx, manifest.window) if manifest.kind != "head" else 0

    def reading(model: OnnxModel | OnnxHead) -> LanguageModel:
        return ExcerptReader(model, span) if span else model

    model = opened(0, None)
    about = f"ONNX {manifest.quantization or ''}, {model.provider}, {threads} thread(s)"
    if span:
        about += f", {_excerpts(span)}"
    return LoadedDrafter(
        manifest.name,
        reading(model),
        about,
        manifest.parameters,
        model.close,
        fingerprint(folder),
        manifest.right,
        beside=lambda sequence: reading(opened(sequence, model)),
        size=model.conversation_size,
    )
