"""How a rule of the specification is broken: an error that pydantic carries, in two sentences."""

from __future__ import annotations

from mics_core.errors import BrokenRule

__all__ = ["RuleError"]


class RuleError(ValueError):
    """A value breaks a rule. It is a `ValueError`, which is what pydantic gathers from validators.

    Args:
        rule: The value and the rule that it breaks, in one sentence. One that begins with the name
            of a field is reported at that field.
        remedy: What to do about it, in one sentence.
    """

    def __init__(self, rule: str, remedy: str):
        super().__init__(rule, remedy)
        self.rule = rule
        self.remedy = remedy

    def __str__(self) -> str:
        return str(self.broken)

    @property
    def broken(self) -> BrokenRule:
        """The two sentences as a plain value."""
        return BrokenRule(self.rule, self.remedy)
