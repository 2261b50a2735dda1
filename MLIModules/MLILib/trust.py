"""What a bundle's configuration may do: an allow-list of the networks, transforms and expressions inference needs.

MONAI's parser evaluates ``$`` texts with Python's eval and calls whatever ``_target_`` names, so a configuration is
code. Here it is cut down to the entries that are asked for and what they refer to, and each of those is checked.
"""

from __future__ import annotations

import ast
import builtins
import copy
import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .allowed import (
    BUILTINS,
    METHODS,
    PRETRAINED,
    SKIPPED_TRANSFORMS,
    Refused,
    is_constant,
    is_network,
    located,
    may_be_called,
)
from .errors import BadInput

if TYPE_CHECKING:
    import monai.bundle

_PLAIN_NODES = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Starred, ast.keyword, ast.Load, ast.Store,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Subscript, ast.Slice, ast.operator, ast.unaryop,
    ast.boolop, ast.cmpop, ast.JoinedStr, ast.FormattedValue, ast.arguments, ast.arg,
)  # fmt: skip
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
_MAX_MACROS = 10000


@dataclasses.dataclass(frozen=True)
class Checked:
    """A configuration cut down to what was asked for, safe to give to MONAI's parser with these global names."""

    config: dict[str, Any]
    globals: dict[str, Any]


def check(
    config: Mapping[str, Any], roots: Sequence[str], *, folder: Path, name: str, sha256: str, trusted: bool = False
) -> Checked:
    """The entries `roots` of a bundle's configuration and all they refer to, checked against the allow-list.

    Args:
        config: the whole configuration, as read.
        roots: names of top-level entries that will be used; those absent are passed over.
        folder: the bundle's folder; ``%`` macros may read configuration files below it only.
        name: the bundle's, for the error.
        sha256: the bundle's, for the error.
        trusted: lift the limits on callables; entries that are not referred to are still left out.

    Raises:
        BadInput: names the first callable that is not allowed and says how to trust the bundle.
    """
    whole = _expand(copy.deepcopy(dict(config)), folder, name)
    kept: dict[str, Any] = {}
    pending = [root for root in roots if root in whole]
    while pending:
        key = pending.pop()
        if key in kept:
            continue
        kept[key] = _without_files(whole[key])
        pending.extend(ref for ref in sorted(_references(kept[key])) if ref in whole)
    imports = [text for key in ("imports", "import") for text in _texts(whole.get(key)) if text.startswith("$")]
    if trusted:
        return Checked({"imports": imports, **kept}, {})
    try:
        checker = _Checker(_aliases(imports))
        checked = {key: checker.node(value) for key, value in kept.items()}
        return Checked(checked, checker.globals())
    except Refused as refused:
        raise BadInput(
            f"The configuration of the model {name} names {refused}, which is not allowed.",
            "A configuration can run any Python code, so only networks and transforms of MONAI and torch may be named.",
            f"If you trust its authors, allow this very model by its checksum: --trust {sha256}",
        ) from refused


@functools.cache
def locator() -> monai.bundle.ComponentLocator:
    """MONAI's table of its own classes by name; it takes 40 ms to make, and a parser would make one each."""
    from monai.bundle import ComponentLocator

    return ComponentLocator()


def _expand(config: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """`config` with relative ids made absolute and ``%`` macros replaced by what they name, none left."""
    from monai.bundle import ConfigParser

    count = 0

    def fail(text: str, cause: str) -> BadInput:
        return BadInput(
            f"The configuration of the model {name} holds the macro {text!r}, which cannot be resolved.", cause,
            "Ask its authors for a corrected model.",
        )  # fmt: skip

    def expand(value: Any, id: str, depth: int) -> Any:
        nonlocal count
        if isinstance(value, dict):
            return {key: expand(v, f"{id}::{key}" if id else str(key), depth) for key, v in value.items()}
        if isinstance(value, list):
            return [expand(v, f"{id}::{i}" if id else str(i), depth) for i, v in enumerate(value)]
        if not isinstance(value, str):
            return value
        try:
            text = ConfigParser.resolve_relative_ids(id, value)
        except ValueError as error:
            raise fail(value, "Its relative reference leaves the configuration.") from error
        if not text.startswith("%"):
            return text
        count += 1
        if depth > 20 or count > _MAX_MACROS:
            raise fail(value, "Its macros refer to each other in a circle.")
        path, target = ConfigParser.split_path_id(text[1:])
        source: Any = config if not path else _macro_file(path, folder, fail, text)
        try:
            found = ConfigParser(source)[target] if target else source
        except (KeyError, IndexError, ValueError) as error:
            raise fail(text, "There is no such entry.") from error
        return expand(copy.deepcopy(found), id, depth + 1)

    expanded: dict[str, Any] = expand(config, "", 0)
    return expanded


def _macro_file(path: str, folder: Path, fail: Any, text: str) -> Any:
    from monai.bundle import ConfigParser

    for base in (folder, folder / "configs"):
        file = (base / path).resolve()
        if file.is_file():
            if not file.is_relative_to(folder.resolve()):
                raise fail(text, "The file lies outside the model's folder.")
            try:
                return ConfigParser.load_config_file(file)
            except ValueError as error:
                raise fail(text, f"The file is not a configuration ({error}).") from error
    raise fail(text, "The model has no such file.")


def _without_files(value: Any) -> Any:
    """`value` without the transforms that read or write files, wherever they stand in a list."""
    if isinstance(value, dict):
        return {key: _without_files(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_files(v) for v in value if not _is_file_transform(v)]
    return value


def _is_file_transform(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("_target_"), str):
        return False
    last = value["_target_"].rpartition(".")[2]
    return re.sub(r"(d|D|Dict)$", "", last) in SKIPPED_TRANSFORMS


def _references(value: Any) -> set[str]:
    """The top-level names that the texts in `value` refer to with ``@``."""
    from monai.bundle import ReferenceResolver

    return {
        ref.partition("::")[0] for text in _texts(value) for ref in ReferenceResolver.match_refs_pattern(value=text)
    }


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for v in value.values() for text in _texts(v)]
    if isinstance(value, list):
        return [text for v in value for text in _texts(v)]
    return []


def _aliases(imports: Sequence[str]) -> dict[str, str]:
    """What the names that a configuration imports stand for: {"np": "numpy", "Norm": "monai.networks.layers.Norm"}."""
    found = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}
    for text in imports:
        try:
            (statement,) = ast.parse(text[1:]).body
        except (SyntaxError, ValueError) as error:
            raise Refused(f"{text!r} among its imports") from error
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            raise Refused(f"{text!r} among its imports")
        for alias in statement.names:
            if isinstance(statement, ast.ImportFrom):
                bound, dotted = alias.asname or alias.name, f"{statement.module}.{alias.name}"
            elif alias.asname:
                bound, dotted = alias.asname, alias.name
            else:
                bound = dotted = alias.name.partition(".")[0]
            if found.setdefault(bound, dotted) != dotted:
                raise Refused(f"{bound!r} for both {found[bound]} and {dotted}")
    return found


class _Checker:
    """Walks a configuration; returns it with every ``_target_`` written out in full, or raises :class:`Refused`."""

    def __init__(self, aliases: dict[str, str]) -> None:
        self._aliases = aliases
        self._used: dict[str, Any] = {}

    def globals(self) -> dict[str, Any]:
        """The imported names that the checked expressions use, with what they stand for."""
        return dict(self._used)

    def node(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.node(v) for v in value]
        if isinstance(value, str):
            if value.startswith("$"):
                self.expression(value)
            return value
        if not isinstance(value, dict):
            return value
        if "_target_" not in value:
            return {key: self.node(v) for key, v in value.items()}
        return self.component(value)

    def component(self, value: dict[str, Any]) -> dict[str, Any]:
        target = value["_target_"]
        if not isinstance(target, str) or target[:1] in "$@":
            raise Refused(f"a callable that is computed ({target!r})")
        if value.get("_mode_", "default") not in ("default", "callable"):
            raise Refused(f"the mode {value['_mode_']!r} of {target}")
        found = located(self._full_name(target), target)
        if not may_be_called(found):
            raise Refused(target)
        out = {key: self.node(v) for key, v in value.items() if key not in ("_target_", "_mode_")}
        if "_mode_" in value:
            out["_mode_"] = value["_mode_"]
        if inspect.isclass(found) and is_network(found):
            parameters = inspect.signature(found).parameters
            out.update({key: off for key, off in PRETRAINED.items() if key in parameters})
        return {"_target_": f"{found.__module__}.{found.__qualname__}", **out}

    def _full_name(self, target: str) -> str:
        if "." in target:
            return target
        modules = locator().get_component_module_name(target)
        if isinstance(modules, list):
            modules = modules[0]  # MONAI takes the first one, too
        return f"{modules}.{target}" if modules else target

    def expression(self, text: str) -> None:
        from monai.bundle import ReferenceResolver

        if "__local_refs" in text:
            raise Refused(repr(text))
        refs = ReferenceResolver.match_refs_pattern(value=text)
        python = ReferenceResolver.update_refs_pattern(text, dict.fromkeys(refs))[1:]
        try:
            tree = ast.parse(python.strip(), mode="eval")  # an import statement is not an expression
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise Refused(repr(text)) from error
        self._visit(tree, frozenset(), text)

    def _visit(self, node: ast.AST, local: frozenset[str], text: str) -> None:
        if isinstance(node, ast.Lambda):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            every += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
            self._bind({a.arg for a in every}, text)
            for default in [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
                self._visit(default, local, text)
            self._visit(node.body, local | {a.arg for a in every}, text)
            return
        if isinstance(node, _COMPREHENSIONS):
            for generator in node.generators:
                self._visit(generator.iter, local, text)  # outside the names it binds, as Python does
                self._visit_target(generator.target, text)
                bound = {n.id for n in ast.walk(generator.target) if isinstance(n, ast.Name)}
                self._bind(bound, text)
                local = local | bound
                for condition in generator.ifs:
                    self._visit(condition, local, text)
            parts = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
            for part in parts:
                self._visit(part, local, text)
            return
        if isinstance(node, ast.Call):
            self._visit_called(node.func, local, text)
            for argument in (*node.args, *node.keywords):
                self._visit(argument, local, text)
            return
        if isinstance(node, ast.Attribute):
            dotted = self._dotted(node, local)
            if dotted is not None:
                self._allowed_name(dotted)
                return
            if node.attr not in METHODS:
                raise Refused(f"the attribute {node.attr!r} in {text!r}")
            self._visit(node.value, local, text)
            return
        if isinstance(node, ast.Name):
            self._visit_name(node, local)
            return
        if not isinstance(node, _PLAIN_NODES):
            raise Refused(repr(text))
        for child in ast.iter_child_nodes(node):
            self._visit(child, local, text)

    def _visit_called(self, func: ast.expr, local: frozenset[str], text: str) -> None:
        """A call may be of an allowed name or of an allowed method; not of a value."""
        if isinstance(func, ast.Attribute) or (isinstance(func, ast.Name) and func.id not in local):
            self._visit(func, local, text)
            return
        raise Refused(f"the call of a value in {text!r}")

    def _visit_name(self, node: ast.Name, local: frozenset[str]) -> None:
        if node.id in local or node.id == "__local_refs":
            return
        if node.id in self._aliases:
            self._allowed_name((node.id, self._aliases[node.id], ()))
        elif node.id not in BUILTINS:
            raise Refused(node.id)

    def _visit_target(self, target: ast.expr, text: str) -> None:
        for part in ast.walk(target):
            if not isinstance(part, ast.Name | ast.Tuple | ast.List | ast.Starred | ast.Store):
                raise Refused(repr(text))

    def _bind(self, names: set[str], text: str) -> None:
        """A local name may not hide a package, a builtin or the references: what was checked would be another thing."""
        for name in names:
            if name in self._aliases or hasattr(builtins, name) or name.startswith("__"):
                raise Refused(f"the name {name!r} as a variable in {text!r}")

    def _dotted(self, node: ast.Attribute, local: frozenset[str]) -> tuple[str, str, tuple[str, ...]] | None:
        """An attribute chain that starts at an imported name: (that name, what it stands for, the attributes)."""
        chain: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name) or inner.id in local or inner.id == "__local_refs":
            return None
        if inner.id not in self._aliases:
            if inner.id in BUILTINS:
                return None
            raise Refused(".".join([inner.id, *reversed(chain)]))
        return inner.id, self._aliases[inner.id], tuple(reversed(chain))

    def _allowed_name(self, name: tuple[str, str, tuple[str, ...]]) -> None:
        bound, dotted, chain = name
        full = ".".join([dotted, *chain])
        found = located(full, full)
        if not (may_be_called(found) or is_constant(found)):
            raise Refused(full)
        self._used[bound] = located(dotted, full)
