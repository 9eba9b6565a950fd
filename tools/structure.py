"""The rules of the house that no single file shows: later lessons import and never copy, and imports point one way."""

import ast
import sys
from pathlib import Path

import nbformat
from export import exported_cells, module_name
from lessons import lesson_paths

# tqdm draws the progress bar of `fit`.
LIBRARIES = {"torch", "torchvision", "einops", "tqdm"}
# Shorter definitions look alike without being copies.
COPY_LENGTH = 300


def copies(notebooks: Path, package: Path) -> list[str]:
    """Returns a sentence for every public function or class of a lesson module that stands a second time.

    A second export of the same name is a copy; so is the same body, whatever its name, in any cell of another lesson or in ``lab``.
    """
    lessons = lesson_paths(notebooks)
    exported = {path: definitions("\n".join(exported_cells(path))) for path in lessons}
    found = []
    for number, path in enumerate(lessons):
        for definition in exported[path]:
            for later in lessons[number + 1 :]:
                if any(other.name == definition.name for other in exported[later]):
                    found.append(
                        f"{later.name} exports {definition.name} again: import it from {package.name}.{module_name(path)}"
                    )
            elsewhere = {other.name: every_definition(other) for other in lessons if other != path}
            hand_written = sorted(package.glob("lab/**/*.py"))
            elsewhere |= {
                str(file.relative_to(package.parent)): definitions(file.read_text()) for file in hand_written
            }
            for place, others in elsewhere.items():
                for other in others:
                    if len(body(definition)) > COPY_LENGTH and body(other) == body(definition):
                        found.append(
                            f"{place} copies {definition.name} of {path.name}: import it from {package.name}.{module_name(path)}"
                        )
    return list(dict.fromkeys(found))


def every_definition(path: Path) -> list[ast.FunctionDef | ast.ClassDef]:
    """Returns the functions and classes of all code cells of a notebook; cells that are not plain Python have none."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            try:
                found += definitions(cell.source)
            except SyntaxError:
                continue
    return found


def definitions(source: str) -> list[ast.FunctionDef | ast.ClassDef]:
    """Returns the public functions and classes at the top level of a piece of Python."""
    tree = ast.parse(source)
    return [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


def body(definition: ast.FunctionDef | ast.ClassDef) -> str:
    """Returns what a definition does, without its name and docstring, in a form that can be compared."""
    statements = definition.body[1:] if ast.get_docstring(definition) else definition.body
    return "".join(ast.dump(statement) for statement in statements)


def wrong_arrows(notebooks: Path, package: Path) -> list[str]:
    """Returns a sentence for every import of a lesson module but earlier lessons', torch, torchvision, einops and Python's own."""
    found, earlier = [], set()
    for path in lesson_paths(notebooks):
        name = module_name(path)
        if name is None:
            continue
        allowed = LIBRARIES | set(sys.stdlib_module_names)
        for target in imports(ast.parse("\n".join(exported_cells(path)))):
            top, _, rest = target.partition(".")
            if top == package.name and rest.split(".")[0] not in earlier:
                found.append(
                    f"{package.name}.{name} imports {target}: a lesson builds on earlier lessons only"
                )
            elif top != package.name and top not in allowed:
                found.append(
                    f"{package.name}.{name} imports {target}: a lesson module needs nothing but {', '.join(sorted(LIBRARIES))}"
                )
        earlier.add(name)
    return found


def imports(tree: ast.AST) -> list[str]:
    """Returns the dotted names of all modules that a piece of Python imports, wherever the import stands."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # "from vit_course import attention" names a module of the package; elsewhere the part before "import" is enough.
            found += (
                [f"{base}.{alias.name}" for alias in node.names] if "." not in base.lstrip(".") else [base]
            )
    return found
