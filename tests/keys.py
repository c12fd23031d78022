"""The key of a profile that tests share, and other keys made from it."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any, get_type_hints

from edgecs.calibrate.profile import Key
from edgecs.engines.load_options import LoadOptions

KEY = Key(
    model="model-Q4_K_M",
    fingerprint="0" * 32,
    build="0.3.36, AVX2 = 1 | FMA = 1",
    device="AMD EPYC",
    options=LoadOptions(n_gpu_layers=0, threads=2, kernels="llama"),
    kernels="llama",
)
_OWN = {field.name for field in fields(Key)} - {"options"}


def other_key(**changes: Any) -> Key:
    """KEY with other parts and load options; a set of kernels is both."""
    own = {name: changes.pop(name) for name in _OWN if name in changes}
    if "kernels" in own:
        changes["kernels"] = own["kernels"].partition("-")[0]
    return replace(KEY, options=replace(KEY.options, **changes), **own)


def another(name: str, value: Any) -> Any:
    """A value that a load option may have too."""
    if name == "rpc":
        return "127.0.0.1:50052"
    if type(value) is str:
        choices = str(get_type_hints(LoadOptions)[name])
        return next(word for word in re.findall(r"'(\w+)'", choices) if word != value)
    return not value if type(value) is bool else value + 1
