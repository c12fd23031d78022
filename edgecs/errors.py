"""What can go wrong, as one tree; each class knows the exit code of the command line.

    EdgecsError                  1
    ├── ConfigError              2   a setting or an input that cannot be used
    │   └── ContextFull          2   more tokens than the context holds
    ├── ModelError               3   a model that is missing, broken or in use
    │   └── NoNumbers            3   a model whose logits are not numbers
    ├── OutOfMemory              4   weights or KV cache did not fit
    ├── BrokenPromise            5   drafts changed an answer that strict had promised
    ├── FetchError               6   a download failed; nothing half-written is used
    ├── DistillError             7   making a drafter cannot go on; what is done is kept
    ├── Faulty                   1   a drafter that failed; a session goes on without it
    └── Cancelled              130   stopped on request, while loading or in prefill

A message is one sentence that says what was wrong, what was got and what to do.
"""


class EdgecsError(Exception):
    """The root: everything that edgecs raises on purpose."""

    exit_code = 1


class ConfigError(EdgecsError):
    """A setting or an input that cannot be used as it is."""

    exit_code = 2


class ContextFull(ConfigError):
    """More tokens were asked for than the context holds."""


class ModelError(EdgecsError):
    """A model that is missing, unreadable, incompatible or held by somebody else."""

    exit_code = 3


class NoNumbers(ModelError):
    """A model whose best logit is not a number; best: what it is instead."""

    def __init__(self, best: float) -> None:
        super().__init__(
            f"the model gives no token a probability (its best logit is {best}): its "
            "file is damaged, or its arithmetic overflows in this build; fetch it "
            "again, or try another quantisation, --flash-attn off or the CPU (-ngl 0)"
        )


class OutOfMemory(EdgecsError):
    """Weights or KV cache did not fit into memory."""

    exit_code = 4


class BrokenPromise(EdgecsError):
    """Drafts changed an answer where bit-identical rows had been promised."""

    exit_code = 5


class FetchError(EdgecsError):
    """A model could not be fetched."""

    exit_code = 6


class DistillError(EdgecsError):
    """Making a drafter cannot go on; what was done is kept."""

    exit_code = 7


class Faulty(EdgecsError):
    """A drafter that failed, by name; it is parked, and the answer goes on."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} failed: {reason}")
        self.name, self.reason = name, reason


class Cancelled(EdgecsError):
    """Work was stopped on request before it had a result."""

    exit_code = 130
