"""Sampling options, under llama.cpp's names."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from edgecs.errors import ConfigError
from edgecs.sampling.settings import Sampling
from edgecs_cli.options.kinds import AnyFinite, AnyWhole, Whole
from edgecs_cli.options.sections import Section, option, with_options
from edgecs_cli.options.texts import read_data

_sampling = partial(option, Section.SAMPLING)
F = TypeVar("F", bound=Callable[..., Any])

_PLAIN = (
    # name, flags, type, default, help; most used first
    ("temperature", ["--temp", "--temperature"], float, 0.8, "Temperature; 0: greedy."),
    ("top_k", ["--top-k"], int, 40, "Only the K most probable tokens; 0: off."),
    ("top_p", ["--top-p"], float, 0.95, "Nucleus sampling; 1: off."),
    (
        "min_p",
        ["--min-p"],
        float,
        0.05,
        "Minimum probability relative to the best token's; 0: off.",
    ),
    (
        "repeat_penalty",
        ["--repeat-penalty"],
        float,
        1.0,
        "Divides the logits of recent tokens; 1: off.",
    ),
    (
        "repeat_last_n",
        ["--repeat-last-n"],
        int,
        64,
        "Recent tokens that penalties consider; 0: off, -1: all.",
    ),
    (
        "presence_penalty",
        ["--presence-penalty"],
        float,
        0.0,
        "Subtracted from the logits of recent tokens; 0: off.",
    ),
    (
        "frequency_penalty",
        ["--frequency-penalty"],
        float,
        0.0,
        "Subtracted for each recent occurrence of a token; 0: off.",
    ),
    ("typical_p", ["--typical", "--typical-p"], float, 1.0, "Locally typical; 1: off."),
    (
        "top_n_sigma",
        ["--top-nsigma", "--top-n-sigma"],
        float,
        -1.0,
        "At most this many standard deviations below the best; -1: off.",
    ),
    (
        "xtc_probability",
        ["--xtc-probability"],
        float,
        0.0,
        "Probability that XTC excludes the top choices; 0: off.",
    ),
    (
        "xtc_threshold",
        ["--xtc-threshold"],
        float,
        0.1,
        "Minimum probability of a top choice.",
    ),
    (
        "dry_multiplier",
        ["--dry-multiplier"],
        float,
        0.0,
        "DRY penalty for extending a repetition; 0: off.",
    ),
    (
        "dry_base",
        ["--dry-base"],
        float,
        1.75,
        "Growth of the DRY penalty with the length.",
    ),
    (
        "dry_allowed_length",
        ["--dry-allowed-length"],
        int,
        2,
        "Repetitions up to this length are not penalised.",
    ),
    (
        "dry_last_n",
        ["--dry-penalty-last-n"],
        int,
        -1,
        "Recent tokens that DRY considers; 0: off, -1: all.",
    ),
)


def sampling_options(command: F) -> F:
    """Options of the sampler chain, most used first."""
    kinds = {int: AnyWhole(), float: AnyFinite()}
    plain = [
        _sampling(
            *flags,
            name,
            type=kinds[kind],
            default=default,
            show_default=True,
            help=text,
        )
        for name, flags, kind, default, text in _PLAIN
    ]
    options = [
        plain[0],
        _sampling(
            "-s",
            "--seed",
            type=Whole(-1, 2**64 - 1),
            default=-1,
            show_default=True,
            help="The same seed gives the same answer; -1: random, printed.",
        ),
        _sampling(
            "-j",
            "--json-schema",
            metavar="SCHEMA",
            help="Constrain the answer to JSON of a schema; {}: any JSON.",
        ),
        _sampling(
            "-jf",
            "--json-schema-file",
            type=click.Path(path_type=Path),
            help="The same, from a file.",
        ),
        _sampling(
            "--grammar", metavar="GBNF", help="Constrain the answer to a grammar."
        ),
        _sampling(
            "--grammar-file",
            type=click.Path(path_type=Path),
            help="The same, from a file.",
        ),
        *plain[1:],
        _sampling(
            "--dry-sequence-breaker",
            "dry_breakers",
            multiple=True,
            metavar="TEXT",
            help="DRY sequence breaker; replaces the default newline, colon, quote, "
            "star; 'none': no breakers.",
        ),
        _sampling(
            "-l",
            "--logit-bias",
            multiple=True,
            metavar="ID(+/-)BIAS",
            help="Add to the logit of a token, as in 15043+1; -inf forbids it.",
        ),
        _sampling(
            "--mirostat",
            type=AnyWhole(),
            default=0,
            help="Not supported: its state depends on earlier draws.",
        ),
    ]
    return with_options(command, options)


def read_sampling(values: dict[str, Any]) -> Sampling:
    """The sampler chain of the options, with a random seed if none is given.

    Raises ConfigError.
    """
    if values["mirostat"]:
        raise ConfigError(
            "mirostat is not supported: its state depends on earlier draws, so the "
            "answer would depend on the drafts; use --top-p or --min-p"
        )
    seed = values["seed"]
    plain = {name: values[name] for name, *_ in _PLAIN}
    breakers = values["dry_breakers"]
    if breakers:
        plain["dry_breakers"] = tuple(b for b in breakers if b != "none")
    return Sampling(
        **plain,
        logit_bias=tuple(map(_bias, values["logit_bias"])),
        seed=secrets.randbits(32) if seed < 0 else seed,
    )


def _bias(text: str) -> tuple[int, float]:
    """Parses `ID+BIAS` or `ID-BIAS`, as llama.cpp does."""
    at = next((i for i, letter in enumerate(text) if letter in "+-"), len(text))
    try:
        return int(text[:at]), float(text[at:])
    except ValueError as error:
        raise ConfigError(
            f"the logit bias {text!r} is not valid: give a token's id, a sign and a "
            "number, as in 15043+1"
        ) from error


def read_grammar(values: dict[str, Any]) -> Any:
    """The grammar of the options, or None. Raises ConfigError."""
    given = given_grammar(values)
    if given is None:
        return None
    from edgecs.grammar.mask import Grammar

    kind, text = given
    return Grammar.gbnf(text) if kind == "grammar" else Grammar.json_schema(text)


def given_grammar(values: dict[str, Any]) -> tuple[str, Any] | None:
    """Whether a grammar or a JSON schema was given, and its text. Raises ConfigError.

    The text is that of the option, or the data of its file.
    """
    names = ("grammar", "grammar_file", "json_schema", "json_schema_file")
    given = [name for name in names if values[name] is not None]
    if not given:
        return None
    if len(given) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in given)
        raise click.UsageError(f"{flags} are mutually exclusive: give one of them")
    (name,) = given
    text = values[name]
    if isinstance(text, Path):
        text = read_data(text)
    return ("grammar" if name.startswith("grammar") else "json_schema"), text
