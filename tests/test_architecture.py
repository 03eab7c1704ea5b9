"""The house stays as README's "Architecture" says: who may import whom, names, sizes, questions."""

import ast
import subprocess
from collections import defaultdict

import pytest
from source_tree import FOLDERS, ROOT, circles, imports, modules, tree_of

CONTRACTS = {  # what a model, a tokenizer and a condition promise, for whoever uses any of them
    "visual_ar.conditioning.condition",
    "visual_ar.models.draft_head",
    "visual_ar.models.token_model",
    "visual_ar.tokenizers.visual_tokenizer",
}
INSIDE_ACCEL = ("rules", "kernels", "loop", "drafts", "methods")  # none imports one behind it

PLAIN = (
    *("assets", "diffusers_habits", "folder", "guidance", "hub", "layout", "packed"),
    *("plain_numbers", "plain_text", "processor", "regular_file", "sampling", "size", "store"),
    *("text_blocks", "write_beside"),
)
"""Files of one concern each that import nothing of ours, `layout` and `sampling` among them."""
FILES = ("eight_bit", "picture_file", "png", "text_file")
PARTS = (*PLAIN, *FILES, "cache", "few_rows", "layers", "tokens", "contracts")
DECODING = (*PARTS, "cast", "accel", "rules", "kernels", "loop")
LOADING = ("companions", "component_files", "folder_schema", "loading")
SERVING = (
    *(*DECODING, *LOADING, "conditioning", "eight_bit_linear", "request", "output", "rendering"),
)
RUNNING = (*SERVING, "pipeline", "job", "lanes", "engine", "provenance", "method_options", "top")
MAY_IMPORT = {
    **dict.fromkeys(PLAIN, ()),
    **dict.fromkeys(FILES, ("regular_file", "write_beside")),
    "user_errors": ("plain_text",),
    "top": (),  # the registries of names, which import what is asked for
    "accel": (),
    "cache": (),
    "few_rows": ("cache", "packed"),
    "layers": ("cache", "few_rows", "packed"),
    "eight_bit_linear": ("eight_bit", "layers"),
    "tokens": ("layout", "sampling"),
    "contracts": ("cache", "eight_bit", "layers", "layout", "size", "sampling", "tokens"),
    "tokenizers": ("contracts", "eight_bit", "layers", "size", "tokens"),
    "models": (*PARTS, "tokenizers"),
    "text_encoder": ("eight_bit", "layers", "text_blocks"),
    "cast": ("contracts", "layout", "tokens"),
    "rules": ("contracts", "sampling", "tokens"),
    "kernels": ("contracts", "rules", "sampling", "store", "tokens", "write_beside"),
    "loop": (*PARTS, "cast", "rules", "kernels"),
    "drafts": (*PARTS, "cast", "rules", "kernels", "loop"),
    "methods": (*PARTS, "cast", "rules", "kernels", "loop", "drafts"),
    "given_pixels": ("picture_file", "size"),
    "request": (
        *("contracts", "diffusers_habits", "given_pixels", "guidance", "layout", "plain_numbers"),
        *("sampling", "size", "tokens"),
    ),
    "conditioning": ("contracts", "plain_numbers", "request"),
    "rendering": ("contracts", "size", "tokens"),
    "companions": ("conditioning", "contracts"),
    "component_files": ("eight_bit", "plain_numbers", "regular_file"),
    "folder_schema": ("component_files", "plain_numbers"),
    "loading": (
        *("assets", "component_files", "eight_bit", "folder_schema", "hub", "plain_numbers"),
        *("png", "store"),
    ),
    "output": (*PARTS, "cast", "loop", "rendering", "request"),
    "method_options": ("accel", "loop", "methods", "plain_numbers", "rules"),
    "provenance": (*PARTS, "accel", "loop", "method_options", "output", "pipeline", "request"),
    "drawing_pipeline": SERVING,
    "pipeline": (*SERVING, "drawing_pipeline"),
    "checkpoint_file": ("component_files",),
    "conversion": (
        *(*PARTS, "checkpoint_file", "models", "tokenizers", "pipeline", "loading"),
        "text_encoder",
    ),
    "job": ("request", "output", "png", "sampling"),
    "lanes": (*SERVING, "job", "pipeline"),
    "engine": (*SERVING, "job", "lanes", "pipeline"),
    "testing": (*PARTS, "cast", "loop", "tokenizers"),
    "data": ("folder", "picture_file", "store", "size", "write_beside"),
    "evaluation": (*RUNNING, "data", "methods", "models", "tokenizers"),
    "training": (
        *(*SERVING, "data", "evaluation", "methods", "models", "pipeline"),
        *("text_encoder", "tokenizers", "top"),
    ),
    "app": (*RUNNING, "drafts", "evaluation", "methods", "tokenizers", "training", "user_errors"),
    "cli": (
        *(
            *RUNNING,
            "app",
            "user_errors",
            "conversion",
            "data",
            "evaluation",
            "methods",
            "tokenizers",
        ),
        *("training", "models"),
    ),
    "main": ("cli",),
}
"""Room -> the rooms whose files it may import, TYPE_CHECKING and imports in functions included."""

SAME_NAME = {  # base names that saved folders need twice: a model or method, and its module's name
    "denoising.py": {"accel/denoising.py", "visual_ar/models/denoising.py"},
    "draft_head.py": {"accel/draft_head.py", "visual_ar/models/draft_head.py"},
}

LONGEST_FILE, LONGEST_FUNCTION = 400, 80

HEADS = {  # who makes what a kind of token reads; a head is made for its kind
    "visual_ar/models/bitwise.py",
    "visual_ar/testing.py",
}
KINDS = {"TokenKind", "Codes", "Bits", "Subcodes", "Law", "CategoricalLaw", "BitLaw", "SubcodeLaw"}
QUESTIONS = {"bits", "subcodes", "is_bits"}
TOKENS = {"tokens", "labels", "drafts", "codes"}


def room(name):
    """The room of a module."""
    _, *parts = name.split(".")
    if not parts or name in ("visual_ar.tokenizers", "visual_ar.app"):
        return "top"
    if name in CONTRACTS:
        return "contracts"
    if parts[0] == "accel" and len(parts) > 1:
        return "methods" if len(parts) == 2 else parts[1]
    return "main" if parts[0] == "__main__" else parts[0]


def tracked(*endings):
    """Files under version control, or all where there is none."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        files = [file for ending in endings for file in ROOT.rglob(f"*{ending}")]
    else:
        files = [ROOT / line for line in listed.stdout.splitlines() if line.endswith(endings)]
    return sorted(file for file in files if file.is_file())


def test_every_room_imports_only_what_it_may():
    wrong = defaultdict(set)
    for name, others in imports().items():
        here = room(name)
        assert here in MAY_IMPORT, f"{name} needs a room in MAY_IMPORT"
        for other in others:
            if room(other) not in (here, *MAY_IMPORT[here]):
                wrong[f"{here} -> {room(other)}"].add(f"{name} imports {other}")
    assert not wrong, dict(wrong)


def test_the_rooms_of_accel_have_an_order():
    for number, here in enumerate(INSIDE_ACCEL):
        assert not set(INSIDE_ACCEL[number + 1 :]) & set(MAY_IMPORT[here])


def test_no_room_may_import_in_a_circle():
    assert circles(MAY_IMPORT) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(imports()) == []


def test_files_have_names_of_their_own():
    named = defaultdict(set)
    for file in modules().values():
        named[file.name].add(file.relative_to(ROOT).as_posix())
    del named["__init__.py"]
    shims = {f"{folder}.py" for folder in FOLDERS}
    twice = {name: paths for name, paths in named.items() if len(paths) > 1 and name not in shims}
    assert twice == SAME_NAME


@pytest.mark.parametrize("ending", [".py", ".cu", ".cuh"])
def test_files_are_short(ending):
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in tracked(ending)}
    long = {f.relative_to(ROOT).as_posix(): n for f, n in lengths.items() if n > LONGEST_FILE}
    assert not long


def test_functions_are_short():
    long = {}
    for file in tracked(".py"):
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long[f"{file.relative_to(ROOT)}: {node.name}"] = length
    assert not long


def names_in(node):
    """Every name and attribute below a node."""
    below = list(ast.walk(node))
    return {n.id for n in below if isinstance(n, ast.Name)} | {
        n.attr for n in below if isinstance(n, ast.Attribute)
    }


def asks(node):
    """Whether a node asks what kind of token something is."""
    if isinstance(node, ast.Attribute):
        return node.attr in QUESTIONS
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        tests_class = node.func.id in ("isinstance", "issubclass") and len(node.args) == 2
        asked_for = node.func.id in ("getattr", "hasattr") and len(node.args) > 1
        if asked_for and isinstance(node.args[1], ast.Constant):
            return node.args[1].value in QUESTIONS
        return tests_class and bool(names_in(node.args[1]) & KINDS)
    if isinstance(node, ast.Compare):
        found = names_in(node)
        of_type = "type" in found or "__class__" in found
        return (of_type and bool(found & KINDS)) or {"dtype", "bool"} <= found & (
            {"dtype", "bool"} if found & TOKENS else set()
        )
    return isinstance(node, ast.MatchClass) and bool(names_in(node.cls) & KINDS)


def test_nobody_but_heads_asks_what_a_token_is():
    wrong = []
    for file in modules().values():
        path = file.relative_to(ROOT).as_posix()
        if path.startswith(("visual_ar/tokens/", "tokenizers/")) or path in HEADS:
            continue
        wrong += [
            f"{path}:{node.lineno} {ast.unparse(node)}"
            for node in ast.walk(tree_of(file))
            if asks(node)
        ]
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        "model.bits",
        "isinstance(law, CategoricalLaw)",
        "isinstance(law, (int, laws.BitLaw))",
        "issubclass(kind, Bits)",
        "type(kind) is Subcodes",
        "kind.__class__ == Codes",
        "hasattr(model, 'bits')",
        "tokens.dtype == torch.bool",
    ],
)
def test_questions_are_seen(text):
    assert any(asks(node) for node in ast.walk(ast.parse(text)))
    match = ast.parse("match law:\n    case BitLaw():\n        pass")
    assert any(asks(node) for node in ast.walk(match))


@pytest.mark.parametrize("text", ["Codes(4)", "mask.dtype == torch.bool", "isinstance(x, str)"])
def test_other_code_is_not_taken_for_a_question(text):
    assert not any(asks(node) for node in ast.walk(ast.parse(text)))


def reads_by_itself(node):
    """Whether a call opens a picture or converts one to colours."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr == "convert":
        first = node.args[0] if node.args else None
        return isinstance(first, ast.Constant) and str(first.value).startswith("RGB")
    return node.func.attr == "open" and ast.unparse(node.func.value) in ("Image", "PIL.Image")


def test_nobody_else_opens_pictures():
    """But the reader of recipes, to whom the pixels do not matter."""
    found = {
        file.relative_to(ROOT).as_posix()
        for file in modules().values()
        if any(reads_by_itself(node) for node in ast.walk(tree_of(file)))
    }
    assert found == {"visual_ar/picture_file.py", "visual_ar/png.py"}


@pytest.mark.parametrize(
    "text", ["Image.open(path)", "image.convert('RGB')", "one.convert('RGBA')"]
)
def test_readers_of_pictures_are_seen(text):
    assert any(reads_by_itself(node) for node in ast.walk(ast.parse(text)))
