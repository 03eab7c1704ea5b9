"""Guards of the layout: the path shims, the shadowed name, lazy imports and the wheel's content."""

import ast
import importlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import visual_ar
from visual_ar import accel, assets, tokenizers

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tokenizers", "accel", "app", "assets")
OTHER_NAMES = {"PIL": "pillow", "open_clip": "open_clip_torch"}  # import -> distribution
NOT_DECLARED = {"cuda", "flashinfer"}  # the first comes with torch, the second is used if present


def run(code: str, cwd: Path) -> str:
    """Returns what a fresh interpreter started in `cwd` prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def installed(file: Path) -> Path:
    """Returns where a file of the checkout lies after an installation."""
    path = file.relative_to(ROOT)
    return "visual_ar" / path if path.parts[0] in FOLDERS else path


def files(pattern: str) -> list[Path]:
    """Returns the files of the five code folders that match."""
    found = (path for top in ("visual_ar", *FOLDERS) for path in (ROOT / top).rglob(pattern))
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


def modules() -> list[str]:
    """Returns the dotted names of all modules of the project."""
    names = (".".join(installed(file).with_suffix("").parts) for file in files("*.py"))
    return [name.removesuffix(".__init__") for name in names if name != "visual_ar.__main__"]


def imports() -> set[str]:
    """Returns the top-level names of other projects that the project imports anywhere."""
    names = set()
    for file in files("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module))
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"visual_ar"}


def requirements() -> dict[str, Requirement]:
    """Returns what an installation brings, with every extra but that of the tests, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[name] for name in extras if name != "test")]
    found = [Requirement(text) for texts in lists for text in texts]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_have_no_init(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_hugging_face_tokenizers_is_not_shadowed():
    pytest.importorskip("tokenizers.models", reason="needs Hugging Face's package")
    assert run("import tokenizers; print(hasattr(tokenizers, 'Tokenizer'))", ROOT) == "True\n"


@pytest.mark.parametrize("module", modules())
def test_every_module_imports(module):
    importlib.import_module(module)


@pytest.mark.parametrize("module", [visual_ar, tokenizers, accel])
def test_registries_expose_what_they_promise(module):
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nonesuch"):
        module.nonesuch  # noqa: B018


@pytest.mark.parametrize("name", accel.METHODS)
def test_every_method_name_constructs(name):
    assert isinstance(accel.method(name)(), accel.Decoding)


def test_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"sequential.*got 'guess'"):
        accel.method("guess")


def test_bundled_models_have_cards():
    for name, folder in assets.bundled().items():
        assert (folder / "README.md").is_file(), f"{name} has no model card"


def test_command_line_starts_without_heavy_imports(tmp_path):
    heavy = "{'torch', 'diffusers', 'numpy', 'PIL'}"
    code = f"import sys, visual_ar.cli.main; print({heavy} & set(sys.modules))"
    assert run(code, tmp_path) == "set()\n"


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for file in files("*.py"):
        assert ".".join(installed(file).parent.parts) in settings["packages"]


def test_everything_imported_is_declared():
    needed = {canonicalize_name(OTHER_NAMES.get(name, name)) for name in imports() - NOT_DECLARED}
    assert needed <= requirements().keys()


def test_gradio_is_new_enough_for_the_page():
    # `run_history` of `mount_gradio_app`, which app/demo.py gives, is not in 6.23.
    assert not requirements()["gradio"].specifier.contains("6.23.0")


def test_wheel_holds_everything_and_imports(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="builds without isolation")
    source = tmp_path / "source"  # a copy: building writes into the source folder
    for name in ("visual_ar", *FOLDERS):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    run("from setuptools import build_meta; build_meta.build_wheel('dist')", source)
    [wheel] = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    expected = {installed(file).as_posix() for file in files("*")}
    assert expected <= content
    code = "from visual_ar import accel, assets; print(*accel.__path__, *assets.bundled())"
    place, *models = run(code, tmp_path / "installed").split()
    assert Path(place) == tmp_path / "installed" / "visual_ar" / "accel"
    assert models == list(assets.bundled())
