"""Which family a model belongs to, by its chat template."""

from __future__ import annotations

from edgecs.toolcalls.family import Family
from edgecs.toolcalls.gemma import GEMMA_3, GEMMA_4
from edgecs.toolcalls.generic import Generic
from edgecs.toolcalls.harmony import CHANNEL, Harmony
from edgecs.toolcalls.hermes import OPENS, Hermes
from edgecs.toolcalls.llama3 import Llama3
from edgecs.toolcalls.mistral import ARGUMENTS, MistralArgs, MistralList
from edgecs.toolcalls.mistral import OPENS as MISTRAL_OPENS
from edgecs.toolcalls.qwen_coder import QwenCoder


def family_of(template: str) -> Family:
    """The family whose syntax a template writes; the generic one for all others.

    >>> family_of("{{ messages }}").name
    'generic'
    >>> family_of("{% if tools %}<tool_call> name and \\"arguments\\"").name
    'Hermes'
    """
    generic = Generic(system="System role not supported" not in template)
    if "tools" not in template:
        return generic
    if CHANNEL in template and "functions" in template:
        return Harmony()
    for gemma in (GEMMA_3, GEMMA_4):
        if gemma.opens in template:
            return gemma
    if OPENS in template and "<parameter=" in template:
        return QwenCoder()
    # Others put something else than JSON between these tags.
    if OPENS in template and '"arguments"' in template:
        return Hermes()
    if MISTRAL_OPENS in template:
        return MistralArgs() if ARGUMENTS in template else MistralList()
    if '"parameters"' in template and "ipython" in template:
        return Llama3()
    return generic
