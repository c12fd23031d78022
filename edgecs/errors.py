"""The exceptions of edgecs, as one tree with the exit codes of the command line.

    EdgecsError                  1
    ├── ConfigError              2   an invalid setting or input
    │   └── ContextFull          2   more tokens than the context holds
    ├── ModelError               3   a model that is missing, broken or in use
    │   └── NoNumbers            3   a model whose logits are not numbers
    ├── OutOfMemory              4   weights or KV cache did not fit
    ├── BrokenPromise            5   drafts changed an answer in a strict tier
    ├── FetchError               6   a download failed; partial files are not used
    ├── DistillError             7   training failed; finished work is kept
    ├── WorkerError              8   a worker of --rpc that cannot be used, or was lost
    ├── Faulty                   1   a drafter that failed; the session continues
    └── Cancelled              130   stopped on request, while loading or in prefill

A message is one sentence that says what was wrong, what was got and what to do.
"""


class EdgecsError(Exception):
    """The base class of all exceptions of edgecs."""

    exit_code = 1


class ConfigError(EdgecsError):
    """An invalid setting or input."""

    exit_code = 2


class ContextFull(ConfigError):
    """More tokens were asked for than the context holds."""


class ModelError(EdgecsError):
    """A model that is missing, unreadable, incompatible or already in use."""

    exit_code = 3


class NoNumbers(ModelError):
    """A model whose largest logit is not a finite number. best: its value."""

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
    """Drafts changed an answer in a tier with bit-identical rows."""

    exit_code = 5


class FetchError(EdgecsError):
    """A model could not be fetched."""

    exit_code = 6


class DistillError(EdgecsError):
    """Training a drafter failed; finished work is kept."""

    exit_code = 7


class WorkerError(EdgecsError):
    """A worker that holds layers of a target cannot be used, or was lost."""

    exit_code = 8


class Faulty(EdgecsError):
    """A drafter that failed; it is disabled, and the answer continues."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} failed: {reason}")
        self.name, self.reason = name, reason


class Cancelled(EdgecsError):
    """Work was stopped on request before it had a result."""

    exit_code = 130
