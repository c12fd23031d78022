"""Other files of the same model, and their expected speed on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from edgecs.calibrate.profile import Key, Profile, Profiles, fingerprint
from edgecs.costs.cost_model import CostModel
from edgecs.errors import ModelError
from edgecs.tuning.estimate import expected

_QUANTISED = re.compile(
    r"[-._](?:UD-|i1-)?(?P<name>I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|FP?16|FP?32)"
    r"(?:-00001-of-\d{5})?$",
    re.IGNORECASE,
)
# Parts of a key that differ between quantisations with the same machine and options.
_OF_A_FILE = {"model", "fingerprint", "n_gpu_layers", "repack", "kernels"}


class Quantisation(NamedTuple):
    """Another file of the same model."""

    name: str  # Q4_0
    path: Path
    expected_rates: tuple[float, float] | None  # see `expected_rates`; None: not tuned


def expected_rates(costs: CostModel) -> tuple[float, float]:
    """Expected tokens per second of plain decoding, and with Max-Gram."""
    times = costs.seconds(0)
    return expected(times, False), expected(times, True)


def quantisation(stem: str) -> tuple[str, str]:
    """The name of a model and its quantisation, from the name of its file.

    >>> quantisation("SmolLM2-135M-Instruct.Q4_1"), quantisation("tiny")
    (('smollm2-135m-instruct', 'Q4_1'), ('tiny', ''))
    """
    found = _QUANTISED.search(stem)
    if found is None:
        return stem.lower(), ""
    return stem[: found.start()].lower(), found["name"].upper()


def expected_quantisations(
    model: Path, others: Iterable[Path], key: Key, profiles: Profiles
) -> list[Quantisation]:
    """The files of the same model, with their expected speed.

    key: of the model; only profiles of this machine and these options are used.
    """
    known = {p.key.fingerprint: p for _, p in profiles.all() if p and _like(p, key)}
    name, _ = quantisation(model.stem)
    found = []
    for path in sorted(set(others)):
        other, quantised = quantisation(path.stem)
        try:
            print_ = fingerprint(path) if other == name else key.fingerprint
        except ModelError:  # a part of the file is missing
            continue
        if print_ != key.fingerprint:
            rates = _expected_rates(known.get(print_))
            found.append(Quantisation(quantised or path.stem, path, rates))
    return found


def _like(profile: Profile, key: Key) -> bool:
    """Whether a profile is of a tuning on the same machine with the same options."""
    theirs, ours = profile.key.named(), key.named()
    same = all(theirs[name] == ours[name] for name in ours.keys() - _OF_A_FILE)
    return profile.tuned is not None and same


def _expected_rates(profile: Profile | None) -> tuple[float, float] | None:
    try:
        return expected_rates(CostModel.from_state(profile.costs)) if profile else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
