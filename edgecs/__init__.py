"""edgecs: faster local LLM inference, with drafts that do not change the output.

The target runs in llama.cpp and verifies, in one batched call, tokens that cheaper
drafters propose (Cascade Speculative Drafting, arXiv 2312.11462). Importing this
package loads no engine, and its modules on first use.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecs.calibrate.speculation_profile import SpeculationProfile
    from edgecs.chat.asynchronous import AsyncChat
    from edgecs.chat.chat import Chat
    from edgecs.core.context import Context
    from edgecs.core.draft import Choose, Draft, Drafter, LanguageModel, Rows, Verdict
    from edgecs.decoding.cascade import Cascade, NamedModel, Round, stack
    from edgecs.decoding.kmatrix import KMatrix
    from edgecs.decoding.static_schedule import Schedule, StaticSchedule
    from edgecs.decoding.verification import verify
    from edgecs.drafters.maxgram import MaxGram
    from edgecs.engines.load_options import LoadOptions
    from edgecs.errors import (
        BrokenPromise,
        Cancelled,
        ConfigError,
        ContextFull,
        EdgecsError,
        FetchError,
        ModelError,
        OutOfMemory,
    )
    from edgecs.hub.manifest import Manifest
    from edgecs.hub.store import Store
    from edgecs.planning.planner import Planner
    from edgecs.runtime.builder import Runtime
    from edgecs.runtime.loader import Loaded, LoadedDrafter, load_drafter
    from edgecs.runtime.loader import load as load_target
    from edgecs.runtime.model import Model, load
    from edgecs.runtime.recipe import Recipe
    from edgecs.sampling.chain import Choices, Rule, always, chooser, greedy
    from edgecs.sampling.logprobs import Logprobs
    from edgecs.sampling.settings import Sampling
    from edgecs.session.answer import Token
    from edgecs.session.session import Session
    from edgecs.session.stats import Stats
    from edgecs.text.detokenizer import TextStream, Tokenizer

__all__ = [
    "AsyncChat",
    "BrokenPromise",
    "Cancelled",
    "Cascade",
    "Chat",
    "Choices",
    "Choose",
    "ConfigError",
    "Context",
    "ContextFull",
    "Draft",
    "Drafter",
    "EdgecsError",
    "FetchError",
    "KMatrix",
    "LanguageModel",
    "LoadOptions",
    "Loaded",
    "LoadedDrafter",
    "Logprobs",
    "Manifest",
    "MaxGram",
    "Model",
    "ModelError",
    "NamedModel",
    "OutOfMemory",
    "Planner",
    "Recipe",
    "Round",
    "Rows",
    "Rule",
    "Runtime",
    "Sampling",
    "Schedule",
    "Session",
    "SpeculationProfile",
    "StaticSchedule",
    "Stats",
    "Store",
    "TextStream",
    "Token",
    "Tokenizer",
    "Verdict",
    "__version__",
    "always",
    "chooser",
    "greedy",
    "load",
    "load_drafter",
    "load_target",
    "stack",
    "verify",
]

__version__ = "0.1.0"

logging.getLogger("edgecs").addHandler(logging.NullHandler())

# Programs that use few of these names start faster without the rest.
_HOMES = {
    "calibrate.speculation_profile": "SpeculationProfile",
    "chat.asynchronous": "AsyncChat",
    "chat.chat": "Chat",
    "core.context": "Context",
    "core.draft": "Choose Draft Drafter LanguageModel Rows Verdict",
    "decoding.cascade": "Cascade NamedModel Round stack",
    "decoding.kmatrix": "KMatrix",
    "decoding.static_schedule": "Schedule StaticSchedule",
    "decoding.verification": "verify",
    "drafters.maxgram": "MaxGram",
    "engines.load_options": "LoadOptions",
    "errors": "BrokenPromise Cancelled ConfigError ContextFull EdgecsError FetchError "
    "ModelError OutOfMemory",
    "hub.manifest": "Manifest",
    "hub.store": "Store",
    "planning.planner": "Planner",
    "runtime.builder": "Runtime",
    "runtime.loader": "Loaded LoadedDrafter load_drafter",
    "runtime.model": "Model load",
    "runtime.recipe": "Recipe",
    "sampling.chain": "Choices Rule always chooser greedy",
    "sampling.logprobs": "Logprobs",
    "sampling.settings": "Sampling",
    "session.answer": "Token",
    "session.session": "Session",
    "session.stats": "Stats",
    "text.detokenizer": "TextStream Tokenizer",
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "load_target":
        value = importlib.import_module("edgecs.runtime.loader").load
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"edgecs.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'edgecs' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
