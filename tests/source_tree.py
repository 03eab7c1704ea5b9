"""The modules of the package and who imports whom, read from the source; nothing is imported.

Path shims count as what they point to: `accel/` is `visual_ar.accel`, a name that a registry has is
its module, and a module that only hands on names of others is those others.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("accel", "app", "tokenizers")


@cache
def tree_of(file):
    """The parsed file."""
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def modules():
    """Dotted name -> file, of all modules."""
    found = {}
    for top in ("visual_ar", *FOLDERS):
        for file in sorted((ROOT / top).rglob("*.py")):
            path = file.relative_to(ROOT).with_suffix("")
            if top in FOLDERS:
                path = "visual_ar" / path
            if "__pycache__" not in path.parts:
                found[".".join(path.parts).removesuffix(".__init__")] = file
    return found


@cache
def registry(name):
    """Public name -> module, where a module has a table of them."""
    homes = {}
    for node in tree_of(modules()[name]).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if not isinstance(target, ast.Name) or target.id not in ("CLASSES", "METHODS", "_HOMES"):
            continue
        if isinstance(node.value, ast.Dict):
            for public, home in ast.literal_eval(node.value).items():
                module, _, path = home.partition(":")
                whole = module if module.startswith("visual_ar") else f"{name}.{module}"
                homes[path.partition(".")[0] or public] = whole
    return homes


@cache
def handed_on(name):
    """The modules that a shim stands for; none for a module that does something itself."""
    body = tree_of(modules()[name]).body
    plain = [n for n in body if not isinstance(n, ast.Expr | ast.Import | ast.ImportFrom)]
    only_names = all(
        isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__" for n in plain
    )
    return frozenset(_named(name)) if only_names and body else frozenset()


def _named(name):
    """Modules that a module imports anywhere, TYPE_CHECKING and functions included."""
    known = modules()
    for node in ast.walk(tree_of(known[name])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(name, node)
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                if whole in known:
                    yield whole
                elif source in known:
                    yield registry(source).get(alias.name, source)


def _absolute(name, node):
    if not node.level:
        return node.module
    package = name if modules()[name].name == "__init__.py" else name.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


@cache
def imports():
    """Module -> the modules it imports, shims resolved."""

    def real(name, seen=()):
        homes = handed_on(name) - {*seen, name}
        return {name} if not homes else set().union(*(real(h, (*seen, name)) for h in homes))

    return {
        name: set().union(*(real(other) for other in _named(name))) - {name} for name in modules()
    }


def circles(arrows):
    """Sets of more than one node that all reach each other."""

    def reached(start):
        seen, waiting = set(), [start]
        while waiting:
            for other in arrows.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    reach = {node: reached(node) for node in arrows}
    found = {
        frozenset(other for other in reach[node] if node in reach.get(other, ())) for node in arrows
    }
    return sorted(sorted(circle) for circle in found if len(circle) > 1)
