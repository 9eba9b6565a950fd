"""The rules that no single file shows: later lessons import and never copy, and imports point one way."""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from export import code, exported_cells, module_name, public_definitions
from layout import ATLAS, lesson_paths

LIBRARIES = {"torch", "torchvision", "einops"}
# Backbone and Pyramid save to and load from the hub; `fit` draws a progress bar and asks all processes.
MORE_LIBRARIES = {
    "vit": {"huggingface_hub"},
    "max_vit": {"huggingface_hub"},
    "training": {"tqdm", "accelerate"},
}
# What draws, or joins several processes, is not needed to compute: it is imported where it is used.
INSIDE_FUNCTIONS_ONLY = {"tqdm", "accelerate"}
# Shorter definitions look alike without being copies.
COPY_LENGTH = 300

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def copies(notebooks: Path, package: Path) -> list[str]:
    """List, as sentences, the public functions and classes of lesson modules that stand a second time.

    A second export of the same name is a copy; so is the same body, whatever its name, in any cell of another
    lesson or in ``lab``. An import or an assignment is none: ``solution=patchify`` is the package's own
    function.
    """
    lessons = lesson_paths(notebooks)
    exported = {path: public_definitions(ast.parse("\n".join(exported_cells(path)))) for path in lessons}
    in_cells = {path: {body(definition) for definition in definitions_in_cells(path)} for path in lessons}
    in_lab = {
        file.relative_to(package.parent).as_posix(): {body(definition) for definition in definitions_in(file)}
        for file in sorted(package.glob("lab/**/*.py"))
    }
    found = []
    for number, path in enumerate(lessons):
        source = f"{package.name}.{module_name(path)}"
        elsewhere = {other.name: in_cells[other] for other in lessons if other != path} | in_lab
        for definition in exported[path]:
            for later in lessons[number + 1 :]:
                if any(other.name == definition.name for other in exported[later]):
                    found.append(f"{later.name} exports {definition.name} again: import it from {source}")
            original = body(definition)
            if len(original) > COPY_LENGTH:
                found += [
                    f"{place} copies {definition.name} of {path.name}: import it from {source}"
                    for place, bodies in elsewhere.items()
                    if original in bodies
                ]
    return found


def definitions_in(file: Path) -> list[Definition]:
    """List the public functions and classes of a file of Python."""
    return public_definitions(ast.parse(file.read_text(encoding="utf-8")))


def definitions_in_cells(path: Path) -> Iterator[Definition]:
    """Yield the public functions and classes of all code cells of a notebook that are plain Python."""
    for source in code(path):
        try:
            yield from public_definitions(ast.parse(source))
        except SyntaxError:
            continue


def body(definition: Definition) -> str:
    """Return what a definition does, without its name and docstring, in a form that can be compared."""
    statements = definition.body[1:] if ast.get_docstring(definition) else definition.body
    return "".join(ast.dump(statement) for statement in statements)


def wrong_arrows(notebooks: Path, package: Path) -> list[str]:
    """List, as sentences, the imports that a lesson module may not make.

    It imports earlier lessons of the course, a few libraries and Python's own; a module of the atlas imports
    no other of the atlas.
    """
    found, earlier = [], set()
    for path in lesson_paths(notebooks):
        name = module_name(path)
        if name is None:
            continue
        libraries = LIBRARIES | MORE_LIBRARIES.get(name, set())
        for target in imports(ast.walk(ast.parse("\n".join(exported_cells(path))))):
            top, _, rest = target.partition(".")
            if top == package.name and rest.split(".")[0] not in earlier:
                found.append(f"{package.name}.{name} imports {target}: {builds_on(name)}")
            elif top != package.name and top not in libraries | set(sys.stdlib_module_names):
                allowed = ", ".join(sorted(libraries))
                found.append(f"{package.name}.{name} imports {target}: it needs nothing but {allowed}")
        if not name.startswith(f"{ATLAS}."):
            earlier.add(name)
    return found


def builds_on(name: str) -> str:
    """Say what a lesson may import from the package."""
    if name.startswith(f"{ATLAS}."):
        return "the atlas builds on the lessons of the course, never on another family"
    return "a lesson builds on earlier lessons only"


def eager_imports(notebooks: Path, package: Path) -> list[str]:
    """List, as sentences, what lesson modules import at their top and should import inside a function."""
    found = []
    for path in lesson_paths(notebooks):
        for target in imports(outside_functions(ast.parse("\n".join(exported_cells(path))))):
            if target.split(".")[0] in INSIDE_FUNCTIONS_ONLY:
                found.append(
                    f"{package.name}.{module_name(path)} imports {target} at its top: import it in a function"
                )
    return found


def imports(nodes: Iterable[ast.AST]) -> list[str]:
    """List the dotted names of the modules that these pieces of Python import."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # "from vit_course import attention" names a module; elsewhere the part before "import" is enough.
            names = [base] if "." in base.lstrip(".") else [f"{base}.{alias.name}" for alias in node.names]
            found += names
    return found


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a piece of Python that are not inside a function."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from outside_functions(child)
