"""What is fuzzed: each kind draws one command with its files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np

from edgecs.chat.archive import Owner, save
from edgecs.engines.kv_snapshot import KVSnapshot
from edgecs.testing.fakes import write_random_gguf
from tests.fuzz import calls, http, mutate, tools, vectors

_VOCABULARY = 272


@dataclass(frozen=True)
class Case:
    """A command line, what it reads from stdin, and lines that are typed at a chat.

    keys: what is typed at a chat on a terminal instead, or its new rows and columns;
    each with the seconds before it. requests: what is sent to a server of the model
    `served`, of n_ctx tokens, instead of a command. written: an answer that is parsed
    instead.
    """

    arguments: list[str]
    stdin: bytes = b""
    typed: list[str] = field(default_factory=list)
    keys: list[tuple[float, str | tuple[int, int]]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)
    served: Path | None = None
    n_ctx: int = 512
    written: calls.Said | None = None


Draw = Callable[[Random, Path], Case]


@cache
def _assets() -> Path:
    """The folder with what is changed, one for each process."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="edgecs-fuzz-"))


@cache
def tiny() -> Path:
    """A random Llama that is in order."""
    return write_random_gguf(_assets() / "tiny.gguf", n_ctx=2048)


def _generate(*more: object, plain: bool = True) -> list[str]:
    """A short answer of the tiny model; plain: nothing is probed for it."""
    fixed = ["generate", "-m", str(tiny()), "-p", "hello", "-n", "3", "-c", "64"]
    return [*fixed, *(["--no-spec"] if plain else []), *map(str, more)]


def gguf(random: Random, folder: Path) -> Case:
    """Headers, metadata and tensors of a GGUF."""
    path = folder / "model.gguf"
    if random.random() < 0.5:
        header = 24_000  # bytes up to the tensors
        path.write_bytes(mutate.flipped(tiny().read_bytes(), random, header))
    else:
        with _ignored():
            write_random_gguf(path, changes=_metadata(random))
    if not path.exists():
        path.write_bytes(b"GGUF")
    model = ["-m", str(path), "-p", "hello", "-n", "3", "-c", "64"]
    commands = (
        ["generate", *model, "--no-spec"],
        ["generate", *model, "--raw", "-ngl", "all"],
        ["generate", *model, "--exact", "numeric"],
        ["models", "pairs", str(path), str(tiny())],
        ["convert", "gguf", str(path), "--to", "q8_0", "-o", str(folder / "out")],
        _generate("--draft", path, plain=False),
    )
    return Case(random.choice(commands))


class _ignored:
    """Writing what contradicts itself may fail in the writer already."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        return kind is not None and issubclass(kind, Exception)


def _metadata(random: Random) -> dict[str, object]:
    keys: dict[str, Callable[[], object]] = {
        key: lambda: random.choice(mutate.NUMBERS) % 2**32
        for key in (
            "llama.context_length",
            "llama.embedding_length",
            "llama.block_count",
            "llama.feed_forward_length",
            "llama.attention.head_count",
            "llama.attention.head_count_kv",
            "llama.rope.dimension_count",
            "llama.vocab_size",
            "tokenizer.ggml.bos_token_id",
            "tokenizer.ggml.eos_token_id",
        )
    }
    keys["llama.attention.layer_norm_rms_epsilon"] = lambda: float(
        random.choice(mutate.FLOATS)
    )
    for key in ("general.name", "tokenizer.ggml.pre", "tokenizer.chat_template"):
        keys[key] = lambda: random.choice(mutate.TEXTS).replace("\ud800", "?")
    keys["tokenizer.ggml.model"] = lambda: random.choice(
        ("llama", "bert", "t5", "rwkv", "gpt2", "plamo2", "none", "x", "")
    )
    keys["tokenizer.ggml.tokens"] = lambda: [
        random.choice(("a", "", "<x>", f"t{i}", "Ġ")) for i in range(_VOCABULARY)
    ]
    keys["tokenizer.ggml.token_type"] = lambda: [
        random.randrange(-1, 9) for _ in range(random.choice((5, _VOCABULARY)))
    ]
    keys["tokenizer.ggml.merges"] = lambda: random.choice(
        (["a b"], ["a"], [""], ["a  b", "Ġ Ġ"], [" "])
    )
    chosen = random.sample(list(keys), random.choice((1, 1, 2, 4)))
    return {key: keys[key]() for key in chosen}


@cache
def _drafter() -> Path:
    """The folder of an ONNX drafter that is in order."""
    from edgecs.engines.llama.tokenizer import read_pieces
    from edgecs.hub.compatibility import vocabulary_hash, write_pieces
    from edgecs.hub.drafter_manifest import DrafterManifest, write_drafter
    from tests.onnx_llama import write_onnx

    folder = _assets() / "drafter"
    folder.mkdir()
    write_onnx(folder / "model.onnx", tiny())
    pieces = read_pieces(tiny())
    write_pieces(folder / "pieces.json", pieces)
    np.save(folder / "ids.npy", np.arange(_VOCABULARY, dtype=np.int32))
    write_drafter(
        DrafterManifest(
            name="small",
            description="",
            license="",
            file="model.onnx",
            cache="growing",
            window=64,
            vocabulary=vocabulary_hash(pieces),
            vocabulary_file="pieces.json",
            id_map="ids.npy",
            unknown=0,
            folder=folder,
        )
    )
    return folder


def onnx(random: Random, folder: Path) -> Case:
    """Graphs, manifests and maps of an ONNX drafter."""
    copy = folder / "drafter"
    shutil.copytree(_drafter(), copy)
    name = random.choice(("model.onnx", "model.onnx", "drafter.toml", "ids.npy"))
    path = copy / random.choice((name, "pieces.json"))
    if name == "drafter.toml" and random.random() < 0.7:
        _change_toml(copy / name, random)
    else:
        path.write_bytes(mutate.flipped(path.read_bytes(), random))
    matrix = ("--k-matrix", random.choice(("2,2;0,2", "1,0;0,0")))
    return Case(_generate("--draft", copy, *matrix, plain=False))


def _change_toml(path: Path, random: Random) -> None:
    lines = path.read_text("utf-8").splitlines()
    at = random.randrange(len(lines))
    key = lines[at].split(" = ")[0]
    odd = json.dumps(mutate.value(random, 1))
    lines[at] = random.choice((f"{key} = {odd}", "", lines[at] * 2, f"x{lines[at]}"))
    path.write_text("\n".join(lines), "utf-8", "replace")


def saved(random: Random, folder: Path) -> Case:
    """Saved conversations, also with checksums that were brought up to date."""
    path = folder / "talk.edgecs"
    owner = Owner("tiny", _fingerprint(), random.choice(("x", _loading())), _VOCABULARY)
    state: Any = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes", "ids": [121, 101, 115, 269]},
    ]
    tokens: Any = [268, 270, 104, 105]
    if random.random() < 0.6:
        state = mutate.changed(state, random)
    if random.random() < 0.3:
        tokens = mutate.changed(tokens, random)
    row = (4, np.zeros(random.choice((1, _VOCABULARY)), np.float32))
    cells = KVSnapshot(tokens, random.randbytes(random.choice((0, 8, 999))), row)
    with _ignored():
        save(path, state, owner, random.choice((cells, None)), {"model": str(tiny())})
    if not path.exists() or random.random() < 0.4:
        before = path.read_bytes() if path.exists() else b"PK\3\4"
        path.write_bytes(mutate.flipped(before, random))
    chat = ["chat", "-m", str(tiny()), "-c", "64", "-n", "3", "--no-spec"]
    if random.random() < 0.3:
        chats = folder / "state" / "edgecs" / "chats"
        chats.mkdir(parents=True)
        path.rename(chats / "1.edgecs")
        return Case(["chat", "--resume", *chat[3:]], b"more\n")
    option = random.choice(("--load", "--load", "--prompt-cache"))
    return Case([*chat, option, str(path), "-sys", "Be brief."], b"more\n")


@cache
def _fingerprint() -> str:
    from edgecs.calibrate.profile import fingerprint

    return fingerprint(tiny())


@cache
def _loading() -> str:
    from edgecs.engines.load_options import LoadOptions
    from edgecs.runtime.loader import load

    with load(tiny(), LoadOptions(n_ctx=64)) as loaded:
        return loaded.key().bits


@cache
def _profile() -> tuple[str, dict[str, Any]]:
    """A profile of the tiny model, and the name of its file."""
    from edgecs.calibrate.profile import Profiles
    from edgecs.calibrate.speculation_profile import SpeculationProfile
    from edgecs.engines.load_options import LoadOptions
    from edgecs.runtime.loader import load

    root = _assets() / "profiles"
    with load(tiny(), LoadOptions(n_ctx=64)) as loaded:
        known = SpeculationProfile(
            loaded.target, key=loaded.key(), profiles=Profiles(root)
        )
        known.prepare(1.0)
        known.save()
    (path,) = root.glob("*.json")
    return path.name, json.loads(path.read_text())


def profile(random: Random, folder: Path) -> Case:
    """What was measured on this machine, and what was found out about the build."""
    name, tree = _profile()
    cache_ = folder / "cache" / "edgecs"
    profiles = cache_ / "profiles"
    profiles.mkdir(parents=True)
    for _ in range(random.choice((1, 1, 3))):
        tree = mutate.changed(tree, random)
    (profiles / name).write_bytes(mutate.json_text(tree, random))
    for other in ("llama.json", "tried.json"):
        if random.random() < 0.3:
            found = {"build": "x", "amx": "works", "files": []}
            text = mutate.json_text(mutate.changed(found, random), random)
            (cache_ / other).write_bytes(text)
    commands = (_generate(plain=False), ["doctor"], ["models", "pairs", str(tiny())])
    return Case(random.choice(commands))


def manifest(random: Random, folder: Path) -> Case:
    """Manifests of models, names of the hub, and the config file."""
    odd = random.choice
    path = folder / "model.toml"
    texts = [json.dumps(mutate.value(random, 1)) for _ in range(4)]
    source = odd(
        (
            f'[source.wheel]\npackage = {texts[0]}\nversion = "1"\nmember = {texts[1]}',
            f'[source.wheel]\npackage = "x"\nversion = {texts[0]}\nmember = "a/b.gguf"',
            f"[source.hub]\nrepo = {texts[0]}\nfile = {texts[1]}",
            f'[source.hub]\nrepo = "user/repo"\nfile = {texts[1]}\nrevision={texts[0]}',
            f"[source.path]\npath = {texts[0]}",
            f"[source]\nx = {texts[0]}",
        )
    )
    name, file = odd((texts[2], '"x"')), odd((texts[3], '"x"'))
    head = f'name = {name}\ndescription = ""\nlicense = ""\nfile = {file}\n'
    body = f"{head}{source}\n"
    path.write_bytes(body.encode("utf-8", "surrogatepass"))
    if random.random() < 0.2:
        path.write_bytes(mutate.flipped(path.read_bytes(), random))
    if random.random() < 0.1:
        path.write_text("a = " + mutate.nested(odd((10, 50_000)), random))
    names = (str(path), str(path), odd(mutate.TEXTS), f"user/{odd(mutate.TEXTS)}")
    name = odd(names).replace("\0", "?")
    if random.random() < 0.2:
        config = folder / "config.toml"
        path.replace(config)
        return Case(_generate(), variables={"EDGECS_CONFIG": str(config)})
    verb = odd(("show", "pull", "rm", "verify"))
    commands = (["models", verb, "--", name], ["generate", "-p", "x", "-m", name])
    return Case(odd(commands))


_SCHEMA = (
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "array", "items": {"type": "string", "maxLength": 3}},
    {"anyOf": [{"const": 1}, {"enum": ["x", None]}]},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": "string", "pattern": "^(a|b)+$", "format": "date"},
)
_GRAMMAR = ("root ::= ", "a", "b ::= ", '"x"', "[a-z]", "(", ")", "*", "+", "|", "\n")
_GRAMMAR += ("{2,3}", "root", "[^", "]", '"', "\\x41", "#", ".", "::=", "{2000}")
_TEMPLATE = ("{% for m in messages %}", "{{ m.content }}", "{% endfor %}", "{%", "}}")
_TEMPLATE += ("{{ 'a' * 10 ** 9 }}", "{% set x = 'a' %}", "{{ x ~ x }}", "{% if 1 %}")
_TEMPLATE += ("{{ range(10**9)|list }}", "{{ raise_exception('\x1b[2J') }}", "text")
_TEMPLATE += ("{{ 'a'.ljust(3 * 10**9) }}", "{% endif %}", "{{ ''.__class__ }}")
_TEMPLATE += ("{{ messages|tojson }}", "{{ 9 ** 99 ** 9 }}", "{% macro f() %}")


def schema(random: Random, folder: Path) -> Case:
    """JSON schemas."""
    tree = random.choice(_SCHEMA)
    for _ in range(random.choice((0, 1, 3))):
        tree = mutate.changed(tree, random)
    path = folder / "schema.json"
    path.write_bytes(mutate.json_text(tree, random))
    return Case(_generate("-jf", path))


def grammar(random: Random, folder: Path) -> Case:
    """Grammars."""
    path = folder / "x.gbnf"
    text = "root ::= " + mutate.words(random, _GRAMMAR, 20)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return Case(_generate("--grammar-file", path))


def template(random: Random, folder: Path) -> Case:
    """Chat templates."""
    text = mutate.words(random, _TEMPLATE).replace("\ud800", "?")
    path = folder / "model.gguf"
    with _ignored():
        write_random_gguf(path, changes={"tokenizer.chat_template": text})
    fixed = ["-m", str(path), "-c", "64", "-n", "3", "--no-spec"]
    if random.random() < 0.5:
        return Case(["chat", *fixed], b"hello\nmore\n")
    return Case(["generate", "-p", "hello", *fixed])


def options(random: Random, folder: Path) -> Case:
    """Values of options, for every command."""
    from edgecs_cli.app import COMMANDS, cli

    context = click.Context(cli)
    slow = ("tune", "bench", "distill", "audit")  # they are given no model
    name = random.choice(list(COMMANDS))
    command, path = cli.get_command(context, name), [name]
    while isinstance(command, click.Group) and random.random() < 0.9:
        below = random.choice(list(command.commands))
        command, path = command.commands[below], [*path, below]
    assert command is not None
    arguments = list(path)
    known = [p for p in command.params if isinstance(p, click.Option)]
    for option in random.choices(known, k=random.randrange(4)) if known else ():
        arguments.append(random.choice(option.opts))
        if not option.is_flag:
            arguments.append(_odd(random, folder))
    if name in ("generate", "chat"):
        arguments += ["-m", str(tiny()), "-c", "64", "-n", "2"]
    elif name in slow or path[-1] == "build":
        arguments += ["-m", str(folder / "none.gguf")]
    elif random.random() < 0.7:
        arguments.append(_odd(random, folder))
    return Case(arguments, b"hello\n")


def _odd(random: Random, folder: Path) -> str:
    """A value of an option; what the system refuses in a command line is left out."""
    pipe = folder / "pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    kinds = (
        str(random.choice(mutate.NUMBERS)),
        random.choice(mutate.FLOATS),
        random.choice(mutate.TEXTS),
        str(folder),
        str(folder / "new"),
        str(pipe),
        str(tiny()),
        "/dev/full",
    )
    return random.choice(kinds).replace("\0", "?")


_LINES = ("/help", "/regen", "/undo", "/edit", "/system", "/set", "/show", "/save")
_LINES += ("/load", "/read", "/glob", "/copy", "/stats", "/spec", "/explain", "/clear")
_LINES += ("hello", "temp", "top_k", "on", "off", "auto", "max_tokens", "//x", "/x")


def chat(random: Random, folder: Path) -> Case:
    """Lines that are typed at a chat."""
    typed = []
    for _ in range(random.randrange(1, 8)):
        line = mutate.words(random, _LINES, 4)
        typed.append(random.choice((line, f"{line} {_odd(random, folder)}")))
    fixed = ["chat", "-m", str(tiny()), "-c", "64", "-n", "3", "--no-spec"]
    return Case(fixed, typed=typed, variables={"EDITOR": random.choice(("true", "x"))})


_KEYS = ("\r", "\t", "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x7f", "\x01", "\x05")
_KEYS += (
    "\x0b",
    "\x17",
    "\x12",
    "\x15",
    "\x1b",
    "\x03",
    "\x03\x03",
    "\x04",
    "\x1a",
    "\x1c",
)
_KEYS += (
    '"""',
    "\x1b[200~",
    "\x1b[201~",
    "\x1b[3;5~",
    "\x1bb",
    "\x0c",
    "\x18\x05",
    "\0",
)


def terminal(random: Random, folder: Path) -> Case:
    """Keys that are pressed, and sizes, of a chat's terminal."""
    keys: list[tuple[float, str | tuple[int, int]]] = []
    for _ in range(random.randrange(1, 30)):
        wait = random.choice((0.0, 0.0, 0.005, 0.05))
        key: str | tuple[int, int]
        if random.random() < 0.1:
            sides = (0, 1, 2, 5, 24, 80, 300, 65535)
            key = (random.choice(sides), random.choice(sides))
        elif random.random() < 0.5:
            key = random.choice(_KEYS)
        elif random.random() < 0.5:
            words = mutate.words(random, _LINES, 4).replace("\ud800", "?")
            key = words + random.choice(("\r", "\t", ""))
        else:
            data = random.randbytes(random.choice((1, 4, 40)))
            key = data.decode("utf-8", "surrogateescape")
        keys.append((wait, key))
    if random.random() < 0.5:  # otherwise the window is closed
        keys += [(0.2, "\x03"), (0.05, "\x03"), (0.05, "\x03"), (0.1, "\x04")]
    fixed = ["-m", str(tiny()), "-c", "64", "-n", "3", "--no-spec"]
    return Case(fixed, keys=keys, variables={"EDITOR": "true"})


def requests(random: Random, folder: Path) -> Case:
    """Requests to a server."""
    return Case(["serve"], requests=http.drawn(random), served=tiny())


def tool_requests(random: Random, folder: Path) -> Case:
    """Requests with tools, calls and results, with the template of any family."""
    model = tools.model(random.choice(tools.MODELS), _assets())
    return Case(["serve"], requests=tools.drawn(random), served=model, n_ctx=4096)


def tool_texts(random: Random, folder: Path) -> Case:
    """Answers of models with calls and thoughts."""
    return Case(["parse"], written=calls.drawn(random))


def embeddings(random: Random, folder: Path) -> Case:
    """Requests to a server with an embedding model."""
    model = vectors.model(random.choice(vectors.MODELS), _assets())
    return Case(["serve"], requests=vectors.drawn(random), served=model)


@cache
def _memory() -> Path:
    """A memory with answers, a file and two index files, phrases and recycled rows."""
    from edgecs.engines.llama.tokenizer import read_pieces
    from edgecs.hub.compatibility import vocabulary_hash
    from edgecs.memory import index
    from edgecs.memory.model_files import Identity
    from edgecs.memory.phrases import write_phrases
    from edgecs.memory.recycled import KeptTable
    from edgecs.memory.store import UserStore

    folder, before = _assets() / "memory", index._IN_FILE
    index._IN_FILE = 20
    tokenizer = vocabulary_hash(read_pieces(tiny()))
    model = Identity("tiny", _fingerprint(), tokenizer, _VOCABULARY)
    kept = KeptTable(folder, model, writes=True)
    for token in range(200):
        kept.table.learn([token, (token + 1) % 90], [*range(token, token + 8)])
    kept.save()
    write_phrases(folder, model, [range(n, n + 9) for n in range(0, 200, 5)])
    with UserStore(folder, tokenizer, _VOCABULARY) as store:
        for number, size in enumerate((500, 10, 30)):
            ids = np.arange(number, number + size, dtype=np.int32) % 256
            store.add("answer", "tiny", bytes(ids.tolist()).decode("latin-1"), ids)
        store.documents.add("file", "/a", "hello " * 50)
    index._IN_FILE = before
    return folder


def memory(random: Random, folder: Path) -> Case:
    """Databases, index files, files of models and decisions of a memory."""
    copy = folder / "memory"
    shutil.copytree(_memory(), copy)
    (copy / "consent.json").write_text('{"memory": true}')
    files = sorted(path for path in copy.rglob("*") if path.stat().st_size)
    files = [path for path in files if path.is_file()]
    twice = [p for p in files if p.suffix in (".db", ".phrases", ".recycling")]
    for path in random.choices(files + twice, k=random.choice((1, 1, 3))):
        data = mutate.flipped(path.read_bytes(), random)
        if path.suffix == ".recycling" and random.random() < 0.5:
            data = data[:-32] + hashlib.sha256(data[:-32]).digest()
        path.write_bytes(data)
    (folder / "text").write_text(random.choice(mutate.TEXTS).replace("\ud800", "?"))
    number = str(random.choice((1, 2, 4, 99)))
    here = ("--memory", str(copy))
    commands = (
        *(["memory", *words] for words in (["show"], ["show", number], ["export"])),
        ["memory", "search", random.choice(("hello", "%", "\x1b"))],
        ["memory", "show", "--json"],
        ["memory", "clear", *random.choice((["-y"], [number]))],
        ["memory", "clear", "-y", "--only", random.choice(("phrases", "recycling"))],
        ["memory", "add", str(folder / "text")],
    )
    if random.random() < 0.5:
        trees = ("--draft-leaves", "4", "--exact", "numeric")
        more = random.choice(((), trees))
        plain = not more and random.random() < 0.5
        return Case(_generate(*here, "--temp", "0", *more, plain=plain))
    return Case([*random.choice(commands), *here])


KINDS: dict[str, tuple[Draw, int]] = {  # and how often one is drawn
    "gguf": (gguf, 5),
    "onnx": (onnx, 3),
    "saved": (saved, 5),
    "profile": (profile, 4),
    "memory": (memory, 4),
    "manifest": (manifest, 5),
    "schema": (schema, 4),
    "grammar": (grammar, 4),
    "template": (template, 2),
    "options": (options, 5),
    "chat": (chat, 3),
    "terminal": (terminal, 2),
    "requests": (requests, 5),
    "tool requests": (tool_requests, 4),
    "tool texts": (tool_texts, 4),
    "embeddings": (embeddings, 3),
}
