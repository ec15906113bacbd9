"""How commands end, for scripts: the codes, and what each means for which command.

The help of every command and the table in `docs/operations.md` are made from this.
"""

from __future__ import annotations

import enum

__all__ = ["MEANINGS", "ExitCode", "codes_of", "epilog_of"]


class ExitCode(enum.IntEnum):
    """How a command ended, for scripts."""

    FINE = 0
    FAILED = 1
    """What was watched or checked did not go well; the command itself did its work."""
    REFUSED = 2
    UNREACHABLE = 3
    DENIED = 4
    """The token is missing, not valid, or its role does not allow it."""
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.FINE: "fine",
    ExitCode.FAILED: (
        "the watched job failed or was cancelled; a check of `doctor` failed; `delete` was told no"
    ),
    ExitCode.REFUSED: "wrong usage, or refused; the message has the remedy",
    ExitCode.UNREACHABLE: "the service, or of `probe` the cluster, cannot be reached",
    ExitCode.DENIED: "the token is missing, not valid, or does not allow it",
    ExitCode.INTERRUPTED: "interrupted; the job goes on",
}
"""What each code means, over all commands."""

_FAILURES = {
    "watch": "the job failed or was cancelled",
    "submit": "with `--watch`: the job failed or was cancelled",
    "doctor": "a check failed",
    "delete": "the question was answered with no",
}
"""What `FAILED` means, for the commands that can end with it."""

_TOKENS = ("token create", "token list", "token revoke")
_WITHOUT_SERVICE = ("serve", "doctor", "plan", "probe", *_TOKENS)


def codes_of(command: str) -> dict[ExitCode, str]:
    """Return the codes with which a command may end, and what they mean for it.

    Args:
        command: Its name; of a command in a group with the group's, such as `token list`.
    """
    meanings = dict(MEANINGS)
    del meanings[ExitCode.FAILED]
    meanings[ExitCode.UNREACHABLE] = "the service cannot be reached"
    if command in _WITHOUT_SERVICE:
        del meanings[ExitCode.UNREACHABLE], meanings[ExitCode.DENIED]
    if command == "probe":
        meanings[ExitCode.UNREACHABLE] = "the cluster cannot be reached"
    if command in _FAILURES:
        meanings[ExitCode.FAILED] = _FAILURES[command]
    return dict(sorted(meanings.items()))


def epilog_of(command: str | None = None) -> str:
    """Return what a command's help says of its codes; without a command, all of them."""
    meanings = MEANINGS if command is None else codes_of(command)
    codes = " · ".join(f"**{code.value}** {meaning}" for code, meaning in meanings.items())
    return f"Exit codes: {codes}."
