"""edgecs: a local language model answers faster, with the same tokens.

The target runs in llama.cpp and verifies, in one batched call, tokens that cheaper
drafters propose (Cascade Speculative Drafting, arXiv 2312.11462). Importing this
package loads no engine.
"""

import logging

from edgecs.api import Model, load
from edgecs.beside import AsyncChat
from edgecs.cascade import Cascade, NamedModel, Round, stack
from edgecs.chat import Chat
from edgecs.choice import Choices, Rule, always, chooser, greedy
from edgecs.context import Context
from edgecs.draft import Choose, Draft, Drafter, LanguageModel, Rows, Verdict
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
from edgecs.kmatrix import KMatrix
from edgecs.load import Loaded, LoadedDrafter, load_drafter
from edgecs.load import load as load_target
from edgecs.logprobs import Logprobs
from edgecs.manifest import Manifest
from edgecs.maxgram import MaxGram
from edgecs.options import LoadOptions
from edgecs.planner import Planner
from edgecs.sampling import Sampling
from edgecs.schedule import Quotas, Schedule
from edgecs.session import Session, Token
from edgecs.speculation import Speculation
from edgecs.stats import Stats
from edgecs.store import Store
from edgecs.text import TextStream, Tokenizer
from edgecs.verify import verify

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
    "Quotas",
    "Round",
    "Rows",
    "Rule",
    "Sampling",
    "Schedule",
    "Session",
    "Speculation",
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
