"""Numbers as people write them: `1e18`, `3e-4`, `1_000_000`, `1.3M`, `256k`, read exactly.

What to use when: `Count` for whole things (parameters, tokens, ranks), `Step` where 0 is allowed too, `Positive` for
real quantities, `NonNegative` where 0 switches something off, `Fraction` strictly between 0 and 1. A YAML reader
makes strings or floats of some of these texts, so every numeric field of a study file has one of these types.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

# Decimal multipliers, as in parameter and token counts. Lower-case m is refused: elsewhere it means a thousandth.
SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}

NUMBER_PATTERN = re.compile(
    r"(?P<sign>[-+]?)(?P<digits>(\d[\d_]*)?(\.[\d_]*)?)(?P<exponent>[eE][-+]?\d{1,4})?(?P<suffix>[A-Za-z]?)",
    re.ASCII,
)

# Beyond these a number is a slip of the pen, and floats or fingerprints would no longer be exact or finite.
LARGEST_COUNT = 10**30
LARGEST_REAL = 1e300

# Floats carry this many decimal digits exactly: with them `short_number` loses nothing of a count.
EXACT_DIGITS = 15

HOW_TO_WRITE = "Write it like 12, 0.5M, 256k, 1e18 or 1_000_000"


def parse_number(value: object) -> int | float:
    """The number that a person wrote, an int when it is whole.

    Raises ValueError for anything else: text without a number, NaN, infinity, booleans, unknown suffixes.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{_shown(value)} is not a number. {HOW_TO_WRITE}")
    if isinstance(value, int):
        return value
    exact = _decimal(value)
    if not exact.is_finite():
        raise ValueError(f"{value} is not a finite number. {HOW_TO_WRITE}")
    if abs(exact) > LARGEST_REAL:
        raise ValueError(f"{_shown(value)} is too large: at most {LARGEST_REAL:g} is read. {HOW_TO_WRITE}")
    # Turning 1e300 into an int is exact but helps nobody; a count that large is refused by its own bound.
    return int(exact) if abs(exact) <= LARGEST_COUNT and exact == exact.to_integral_value() else float(exact)


def _decimal(value: float | str) -> Decimal:
    if isinstance(value, float):
        # repr gives the digits that were written, so 0.1 stays 0.1.
        return Decimal(repr(value))
    text = value.strip()
    match = NUMBER_PATTERN.fullmatch(text)
    if match is None or not any(character.isdigit() for character in match["digits"]):
        raise ValueError(f"{_shown(value)} is not a number. {HOW_TO_WRITE}")
    suffix = match["suffix"]
    if suffix and suffix not in SUFFIXES:
        million = "; write M for a million" if suffix == "m" else ""
        raise ValueError(
            f"{_shown(value)} has the unknown suffix {suffix!r}{million}. Known suffixes: k, M, B or G, T, P, E"
        )
    try:
        exact = Decimal(match["sign"] + match["digits"].replace("_", "") + (match["exponent"] or ""))
    except InvalidOperation as error:
        raise ValueError(f"{_shown(value)} is not a number. {HOW_TO_WRITE}") from error
    return exact * SUFFIXES.get(suffix, 1)


def _shown(value: object) -> str:
    # Words of the study file, not of Python.
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _count(minimum: int) -> Any:
    def read(value: object) -> int:
        number = parse_number(value)
        if number > LARGEST_COUNT:
            raise ValueError(f"{_shown(value)} is too large for a count: at most {LARGEST_COUNT:g}")
        if not isinstance(number, int):
            raise ValueError(f"{_shown(value)} must be a whole number. {HOW_TO_WRITE}")
        if number < minimum:
            raise ValueError(f"{_shown(value)} must be {minimum} or more. {HOW_TO_WRITE}")
        return number

    return read


def _real(value: object) -> float:
    return float(parse_number(value))


def _positive(value: object) -> float:
    number = _real(value)
    if number <= 0:
        raise ValueError(f"{_shown(value)} must be > 0. {HOW_TO_WRITE}")
    return number


def _non_negative(value: object) -> float:
    number = _real(value)
    if number < 0:
        raise ValueError(f"{_shown(value)} must be 0 or more. {HOW_TO_WRITE}")
    return number


def _fraction(value: object) -> float:
    number = _real(value)
    if not 0 < number < 1:
        raise ValueError(f"{_shown(value)} must lie strictly between 0 and 1. Write it like 0.2")
    return number


def _json_schema(number: dict[str, Any]) -> WithJsonSchema:
    written = {"type": "string", "pattern": r"^[-+]?[0-9_]*\.?[0-9_]*([eE][-+]?[0-9]+)?[kKMBGTPE]?$"}
    return WithJsonSchema({"anyOf": [number, written]})


Count = Annotated[int, BeforeValidator(_count(1)), Field(gt=0), _json_schema({"type": "integer", "minimum": 1})]
Step = Annotated[int, BeforeValidator(_count(0)), Field(ge=0), _json_schema({"type": "integer", "minimum": 0})]
Real = Annotated[float, BeforeValidator(_real), _json_schema({"type": "number"})]
Positive = Annotated[float, BeforeValidator(_positive), _json_schema({"type": "number", "exclusiveMinimum": 0})]
NonNegative = Annotated[float, BeforeValidator(_non_negative), _json_schema({"type": "number", "minimum": 0})]
Fraction = Annotated[
    float,
    BeforeValidator(_fraction),
    _json_schema({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
]


def short_number(value: float, digits: int = 4) -> str:
    """The value with a suffix and at most `digits` significant digits: 14000 is `14k`, 1_250_000 `1.25M`."""
    for suffix, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # Half of the last digit shown below the scale rounds up into it: 999_996 is 1M, not 1000k.
        if abs(value) >= scale * (1 - 0.5 * 10.0**-digits):
            return f"{value / scale:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def scientific(value: float, digits: int = 3) -> str:
    """The value in powers of ten: `2.72e14`."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
