"""Which family a model belongs to, by its chat template."""

from __future__ import annotations

from edgecs.toolcalls.family import Family
from edgecs.toolcalls.gemma import GEMMA_3, GEMMA_4
from edgecs.toolcalls.generic import Generic
from edgecs.toolcalls.harmony import CHANNEL, Harmony
from edgecs.toolcalls.hermes import OPENS, Hermes
from edgecs.toolcalls.llama3 import TAG, Llama3
from edgecs.toolcalls.mistral import ARGUMENTS, MistralArgs, MistralList
from edgecs.toolcalls.mistral import OPENS as MISTRAL_OPENS
from edgecs.toolcalls.qwen_coder import QwenCoder


def family_of(template: str) -> Family:
    """The family whose syntax a template writes; the generic one for all others.

    >>> family_of("{{ messages }}").name, family_of("{% if tools %}<tool_call>").name
    ('generic', 'Hermes')
    """
    if "tools" not in template:
        return Generic()
    if CHANNEL in template and "to=functions." in template:
        return Harmony()
    for gemma in (GEMMA_3, GEMMA_4):
        if gemma.opens in template:
            return gemma
    if OPENS in template:
        if "<function=" in template:
            return QwenCoder()
        # GLM and others put something else than JSON between the same tags.
        return Generic() if "<arg_key>" in template else Hermes()
    if MISTRAL_OPENS in template:
        return MistralArgs() if ARGUMENTS in template else MistralList()
    if TAG in template or ('"parameters"' in template and "ipython" in template):
        return Llama3()
    return Generic()
