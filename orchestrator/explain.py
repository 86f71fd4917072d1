"""Turns pydantic's findings into one line each: field, value, bound and way out, and "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

DocumentPath = tuple[str | int, ...]

LONGEST_SHOWN_VALUE = 80


@dataclass(frozen=True)
class Finding:
    """One problem, at a path of the document."""

    path: DocumentPath
    text: str


def explain(model: type[BaseModel], error: ValidationError, document: Any) -> list[Finding]:
    """Every problem of a document that `model` refused, in the order of the model's fields."""
    findings = [(found["type"], _finding(model, dict(found), document)) for found in error.errors(include_url=False)]
    # A list whose entries were refused is called too short besides, which says nothing more.
    paths = [finding.path for _, finding in findings]
    return [
        finding
        for kind, finding in findings
        if not (kind == "too_short" and any(path[:-1] == finding.path for path in paths if path))
    ]


def field_name(path: DocumentPath) -> str:
    """How a path is written in messages: `design.sizes[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def did_you_mean(word: str, known: list[str]) -> str:
    """` Did you mean 'tokens'?` where a known word is close, else nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _finding(model: type[BaseModel], found: dict[str, Any], document: Any) -> Finding:
    path = _document_path(found["loc"], found["type"], document)
    name = field_name(path)
    message = _message(model, found, path)
    return Finding(path, f"{name}: {message}" if name else message)


def _document_path(location: DocumentPath, kind: str, document: Any) -> DocumentPath:
    """The location without the tags of unions, which are in pydantic's locations and not in the document."""
    path: list[str | int] = []
    at = document
    for depth, part in enumerate(location):
        inside = (isinstance(at, dict) and part in at) or (
            isinstance(at, list) and isinstance(part, int) and part < len(at)
        )
        if inside:
            path.append(part)
            at = at[part]
        elif kind in ("missing", "study") and isinstance(part, str) and not _is_tag(location, depth, at):
            path.append(part)
            at = None
    return tuple(path)


def _is_tag(location: DocumentPath, depth: int, at: Any) -> bool:
    return isinstance(at, dict) and at.get("kind") == location[depth]


def _message(model: type[BaseModel], found: dict[str, Any], path: DocumentPath) -> str:
    kind, value, context = found["type"], _shown(found["input"]), found.get("ctx", {})
    description = _description(model, found["loc"])
    match kind:
        case "study":
            return str(found["msg"])
        case "value_error":
            return str(context["error"])
        case "missing":
            return f"is required. {description}" if description else "is required"
        case "extra_forbidden":
            known = sorted(name for owner in _owners(model, found["loc"][:-1]) for name in owner.model_fields)
            meant = did_you_mean(str(path[-1]), known)
            return f"unknown key {path[-1]!r}.{meant} Known keys: {', '.join(known)}"
        case "literal_error" | "union_tag_invalid":
            choices = context.get("expected") or context.get("expected_tags", "")
            words = [word.strip().strip("'") for word in str(choices).replace(" or ", ", ").split(",")]
            given = found["input"].get("kind") if isinstance(found["input"], dict) else found["input"]
            return f"{_shown(given)} is unknown.{did_you_mean(str(given), words)} Use one of {', '.join(words)}"
        case "union_tag_not_found":
            return "needs a key `kind`. Use one of grid, isoflop, ladder, points"
        case "string_type":
            return f"{value} must be text. Put it in quotes"
        case "string_pattern_mismatch":
            return f"{value} must match {context['pattern']}. {description}"
        case "string_too_long":
            return f"must be at most {context['max_length']} characters, not {len(str(found['input']))}"
        case "tuple_type" | "list_type":
            return f"{value} must be a list. Write it in brackets, like [{_bare(found['input'])}]"
        case "too_short":
            return f"{value} needs at least {context['min_length']} entry. Add one"
        case "too_long":
            return f"{value} has more than {context['max_length']} entries. Remove some"
        case "model_type" | "dict_type" | "model_attributes_type":
            given = "is empty and" if found["input"] is None else value
            return f"{given} must be a mapping of keys. {description}".rstrip()
        case "less_than_equal":
            return f"{value} must be at most {context['le']}. {description}".rstrip()
        case "less_than":
            return f"{value} must be < {context['lt']:g}. {description}".rstrip()
    return f"{value}: {found['msg'][0].lower()}{found['msg'][1:]}. {description}".rstrip()


def _owners(model: type[BaseModel], location: DocumentPath) -> list[type[BaseModel]]:
    """The models that may stand at a location; a union's tag picks among several."""
    owners = [model]
    for part in location:
        named = [inner for owner in owners if part in owner.model_fields for inner in _inner_models(owner, str(part))]
        tagged = [owner for owner in owners if part in _kinds(owner)]
        owners = named or tagged or owners
    return owners


def _inner_models(owner: type[BaseModel], name: str) -> list[type[BaseModel]]:
    return list(dict.fromkeys(_models_in(owner.model_fields[name].annotation)))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _description(model: type[BaseModel], location: DocumentPath) -> str:
    """What the field says of itself, as the way out."""
    for depth in range(len(location), 0, -1):
        for owner in _owners(model, location[: depth - 1]):
            found = owner.model_fields.get(str(location[depth - 1]))
            if found is not None:
                return found.description or ""
    return ""


def _shown(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_SHOWN_VALUE else text[: LONGEST_SHOWN_VALUE - 3] + "..."


def _bare(value: object) -> str:
    return value if isinstance(value, str) else _shown(value)
