"""Strict reading of `params.yaml`: what DVC reads is what a stage gets, or a message with the line.

DVC tracks the values that ruamel.yaml reads, so ruamel.yaml reads them here too: agreement by construction, for
`1e-3`, `no`, `017` and every other scalar on which YAML 1.1 and 1.2 differ.
"""

import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from imagepipe.core.errors import InputError, list_findings, suggest_name

PARAMS_FILE = Path("params.yaml")
SECTIONS = ("fetch", "split", "balance", "train", "evaluate", "run")
OUTPUT_FOLDERS = ("data/raw", "data/images", "data/manifests", "models", "reports")


class Params(BaseModel):
    """Base of every section: frozen, no unknown key, no conversion between types, no NaN or infinity, no defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AnyParams(Params):
    """A section that is shown as it stands: whatever its keys are, it has some."""

    model_config = ConfigDict(extra="allow")

    @property
    def values(self) -> dict[str, Any]:
        """What the file says, in its order."""
        return self.model_extra or {}


Section = TypeVar("Section", bound=Params)


def read_yaml(path: Path) -> tuple[dict[str, Any], MappingNode]:
    """The mapping in a YAML 1.2 file, and its syntax tree (for the lines of keys).

    Raises InputError for a file that is absent, and whatever `parse_yaml` raises.
    """
    try:
        return parse_yaml(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}. Run from the project's root folder.") from error


def parse_yaml(raw: bytes, path: Path) -> tuple[dict[str, Any], MappingNode]:
    """As `read_yaml`, from the bytes of the file; `path` is for messages only.

    Raises InputError where they are empty, not UTF-8, not a mapping, or repeat a key.
    """
    if raw.startswith(b"\xef\xbb\xbf"):
        raise InputError(f"{path}:1: begins with a byte-order mark; save it as plain UTF-8.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from error
    try:
        yaml = YAML(typ="safe", pure=True)
        tree = yaml.compose(text)
        check_scalars(tree, yaml.constructor, path)
        values = None if tree is None else yaml.constructor.construct_document(tree)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{path}:{line}: holds a control character, {text[error.position]!r}; remove it.") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = str(error.problem or error.context).split(" with value ")[0]
        remedy = " Indent with spaces, not tabs." if "\\t" in problem else ""
        raise InputError(f"{path}:{line}: {problem}.{remedy}") from error
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise InputError(f"{path}: is nested too deeply; expected sections of `key: value` pairs.") from error
    except TypeError as error:  # of a list inside a list as a key
        raise InputError(f"{path}: has a key that is a list or a mapping; expected text.") from error
    except (OverflowError, ValueError) as error:  # ruamel.yaml lets those of chr() and int() through
        raise InputError(
            f"{path}: an escape in double quotes (\\U and its digits), or the number of a %YAML line, is out of range "
            f"({error}); mend it."
        ) from error
    if not isinstance(values, dict) or not isinstance(tree, MappingNode):
        found = "nothing" if values is None else type(values).__name__
        raise InputError(f"{path}:1: expected `key: value` pairs, found {found}.")
    return cast("dict[str, Any]", values), tree


def check_scalars(tree: Node | None, constructor: SafeConstructor, path: Path) -> None:
    """Raise InputError, with its line, for a scalar that looks like a number or a date and is none."""
    for node in iterate_scalars(tree):
        try:
            constructor.construct_object(node, deep=True)
        except (ValueError, LookupError, ArithmeticError, TypeError) as error:
            raise InputError(
                f"{path}:{node.start_mark.line + 1}: {node.value} cannot be read ({error}); put text in quotes."
            ) from error


def iterate_scalars(tree: Node | None) -> Iterator[ScalarNode]:
    """Every scalar of a syntax tree once, keys and values, in the order of the file.

    A node that aliases repeat is not walked again: a few lines of them are millions of values, or one inside itself.
    """
    waiting: list[Node | None] = [tree]
    known: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in known:
            continue
        known.add(id(node))
        if isinstance(node, ScalarNode):
            yield node
        elif isinstance(node, SequenceNode):
            waiting += reversed(cast("list[Node]", node.value))
        elif isinstance(node, MappingNode):
            waiting += reversed([part for pair in cast("list[tuple[Node, Node]]", node.value) for part in pair])


def load_section(name: str, model: type[Section], path: Path = PARAMS_FILE) -> Section:
    """The section `name` of the params file as its typed model.

    Raises InputError with one line for each unknown, missing, mistyped or out-of-range key: file, line, key, what was
    found, what was expected.
    """
    return check_section(name, model, *read_yaml(path), path)


def check_section(name: str, model: type[Section], values: dict[str, Any], tree: MappingNode, path: Path) -> Section:
    """As `load_section`, from what `read_yaml` gave; `path` is for messages only."""
    if name not in values:
        raise InputError(f"{path}: section `{name}` is missing; {suggest_name(name, map(str, values))}.")
    unknown = [
        f"{path}:{find_node(tree, [key])[0].start_mark.line + 1}: {key}: unknown section; {suggest_name(key, SECTIONS)}"
        for key in map(str, values)
        if key not in SECTIONS
    ]
    if unknown:
        raise InputError(list_findings("wrong parameters", unknown))
    try:
        return model.model_validate(values[name])
    except ValidationError as error:
        findings = [describe_problem(path, tree, name, model, details) for details in error.errors()]
        raise InputError(list_findings("wrong parameters", findings)) from error


def describe_problem(path: Path, tree: MappingNode, section: str, model: type[BaseModel], details: ErrorDetails) -> str:
    """One finding of pydantic's as `file:line: key: found …; expected …`."""
    keys = [section, *map(str, details["loc"])]
    key_node, value_node = find_node(tree, keys)
    where = f"{path}:{key_node.start_mark.line + 1}: {'.'.join(keys)}"
    kind = details["type"]
    if kind == "missing":
        return f"{where}: is missing (every key is always present; see recipes/base.yaml)"
    if kind == "extra_forbidden":
        return f"{where}: unknown key; {suggest_name(keys[-1], list_keys(model, keys[1:-1]))}"
    message = details["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{where}: {message}"
    expected = "expected `key: value` pairs" if kind == "model_type" else message.replace("Input should be", "expected")
    found = describe_value(value_node, details["input"])
    quote = kind == "string_type" and isinstance(value_node, ScalarNode) and value_node.value
    return f"{where}: found {found}; {expected}" + (f'; put it in quotes to mean text: "{found}"' if quote else "")


def describe_value(node: Node, value: object) -> str:
    """What stands in the file: a scalar as it is written, nothing as `nothing`, the beginning of what has parts."""
    if not isinstance(node, ScalarNode):
        shown = reprlib.Repr()
        shown.maxlevel = 2
        return shown.repr(value)
    if node.style in ("'", '"'):
        return repr(node.value)
    return str(node.value) or "nothing"


def find_node(tree: MappingNode, keys: list[str]) -> tuple[Node, Node]:
    """Key and value node of the deepest part of `keys` that the file has."""
    key_node: Node = tree
    value_node: Node = tree
    for key in keys:
        for candidate, value in iterate_pairs(value_node):
            if candidate.value == key:
                key_node, value_node = candidate, value
                break
        else:
            break
    return key_node, value_node


def iterate_pairs(node: Node) -> Iterator[tuple[ScalarNode, Node]]:
    """The pairs of a mapping node whose keys are scalars; none for any other node."""
    if isinstance(node, MappingNode):
        yield from ((key, value) for key, value in node.value if isinstance(key, ScalarNode))


def read_pairs(text: str) -> dict[str, str]:
    """A value of the form `name=value name=value` as a mapping; raises ValueError for a word of another form."""
    pairs: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not (name and equals and value) or name in pairs:
            raise ValueError(f"found {word!r}; expected words of the form name=value, each name once")
        pairs[name] = value
    return pairs


def refuse_output(place: str, around: bool = False) -> None:
    """Raise ValueError for a place that is, or lies in, an output of the pipeline, or, with `around`, holds one.

    Links are followed; `~` is the user's home.
    """
    path = Path(os.path.expanduser(place)).resolve()  # noqa: PTH111 (Path raises where there is no such home)
    for output in OUTPUT_FOLDERS:
        written = Path(output).resolve()
        if path.is_relative_to(written) or (around and written.is_relative_to(path)):
            raise ValueError(f"found {place}; expected a place that no stage writes ({output} is an output)")


def lower_sha256(value: str) -> str:
    """A SHA-256 in lower case, as it is compared; '' is none. Raises ValueError for anything else."""
    if not re.fullmatch(r"([0-9a-fA-F]{64})?", value):
        raise ValueError(f"found {value!r}; expected 64 hexadecimal digits, or ''")
    return value.lower()


Sha256 = Annotated[str, AfterValidator(lower_sha256)]


def list_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that `model` has below `path`."""
    for name in path:
        field = model.model_fields.get(name)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)
