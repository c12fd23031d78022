"""Which GGUF of a repository is meant, by its quantisation."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgecs.core.reading import plain

QUANT = r"(?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32)"
"""A quantisation in a name, as a regular expression without regard to case."""
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_FIRST_PART = "-00001-of-"
_DEFAULT = "Q4_K_M"
_NAMED = 12  # files of a repository named in a message


def choose_file(files: Iterable[str], quant: str | None) -> str | None:
    """The GGUF that `repo[:quant]` means, by llama.cpp's rule; None: there is none.

    The quantisation is matched without regard to case; without one it is Q4_K_M, else
    the first file. Of a split model the first part is returned; projectors of
    multimodal models do not count.

    >>> choose_file(["m-Q8_0.gguf", "m-q4_k_m.gguf", "mmproj-f16.gguf"], None)
    'm-q4_k_m.gguf'
    """
    models = sorted(filter(is_model, files))
    wanted = (quant or _DEFAULT).lower()
    pattern = re.compile(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9_])")
    fitting = [file for file in models if pattern.search(file.lower())]
    if fitting or quant:
        return fitting[0] if fitting else None
    return models[0] if models else None


def is_model(file: str) -> bool:
    """Whether a file is a GGUF, no projector, and of a split one the first part."""
    name = file.lower()
    if not name.endswith(".gguf") or "mmproj" in name:
        return False
    return _FIRST_PART in file or not _SPLIT.search(file)


def quant_of(file: str) -> str | None:
    """The quantisation in a file's name; None: there is none.

    >>> quant_of("m-UD-Q4_K_XL.gguf"), quant_of("gpt-oss-20b-mxfp4.gguf"), quant_of("m")
    ('UD-Q4_K_XL', 'mxfp4', None)
    """
    found = re.findall(rf"(?<![a-z0-9])({QUANT})(?![a-z0-9_])", file, re.IGNORECASE)
    return found[-1] if found else None


def named(files: Iterable[str]) -> str:
    """The GGUF files of a repository, as part of a message."""
    found = [plain(file) for file in files if file.endswith(".gguf")]
    more = [f"and {len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return ", ".join(found[:_NAMED] + more) or "no .gguf file"
