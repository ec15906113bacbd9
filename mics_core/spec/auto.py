"""Values of the specification that may be left to the planner by `auto`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from mics_core.spec.rules import RuleError

__all__ = ["CountOrAuto", "SwitchOrAuto"]


def _one_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Refuse a number or 'auto' in one sentence where pydantic has one for each form."""
    try:
        if not isinstance(value, bool):
            return validate(value)
    except ValidationError:
        pass
    raise RuleError(
        "this is a positive whole number or 'auto'.",
        "Leave it at 'auto' to have the planner choose.",
    )


CountOrAuto = Annotated[Annotated[int, Field(gt=0)] | Literal["auto"], WrapValidator(_one_error)]


def _switch_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Refuse a switch in one sentence where pydantic has one for each form."""
    try:
        return validate(value)
    except ValidationError:
        raise RuleError(
            "this is a boolean or 'auto'.",
            "Give true or false, or 'auto' to have the planner choose.",
        ) from None


SwitchOrAuto = Annotated[bool | Literal["auto"], WrapValidator(_switch_error)]
