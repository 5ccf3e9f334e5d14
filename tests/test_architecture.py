"""Two rules, read from the imports: arrows point down, and each library has one home."""

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "sweeper"

#: Lowest first. A module imports what stands below its row, never its siblings.
LAYERS = [
    {"errors"},
    {"reading", "names"},
    {"schedules"},
    {"config", "data", "database"},
    {"search"},
    {"study", "tracking", "store", "training", "charts"},
    {"stats"},
    {"evidence", "fleet"},
    {"service"},
    {"worker"},
    {"on_ray"},
    {"report", "export"},
    {"cli", "notebook"},
]
HOMES = {
    "optuna": {"study"},
    "mlflow": {"tracking"},
    "filelock": {"tracking"},
    "fsspec": {"store"},
    "torch": {"training"},
    "torchvision": {"training"},
    "ultralytics": {"training"},
    "pycocotools": {"training"},
    "sqlalchemy": {"database"},
    "scipy": {"stats"},
    "jinja2": {"report"},
    "matplotlib": {"charts"},
    "pydantic": {"config"},
    "sklearn": {"data"},
    "pandas": {"export"},
    "tqdm": {"notebook"},
    "typer": {"cli"},
    "rich": {"cli"},
    "tenacity": {"database"},
    "ray": {"on_ray"},
}


def imports() -> list[tuple[str, str, str]]:
    """(module of ours, imported module, file:line) for every import statement, also those inside functions."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
                if node.module == "sweeper":
                    names = [f"sweeper.{alias.name}" for alias in node.names]
            found += [(part, name, f"{file.name}:{node.lineno}") for name in names]
    return found


def test_arrows_point_down() -> None:
    rank = {name: row for row, names in enumerate(LAYERS) for name in names}
    wrong = []
    for part, name, where in imports():
        if not name.startswith("sweeper.") or part not in rank:
            continue
        other = name.split(".")[1]
        if other == part or other not in rank:
            continue
        if rank[other] >= rank[part]:
            wrong.append(f"{where}: {part} imports {other}")
    assert not wrong


def test_each_library_has_one_home() -> None:
    wrong = [
        f"{where}: {name} in {part}"
        for part, name, where in imports()
        if (home := HOMES.get(name.split(".")[0])) is not None and part not in home
    ]
    assert not wrong


def test_every_module_has_a_place() -> None:
    placed = set().union(*LAYERS) | {"__init__", "__main__"}
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts <= placed


def test_importing_the_package_is_light() -> None:
    """The command line must answer at once: nothing heavy is imported before it is needed."""
    import subprocess

    heavy = ["torch", "ultralytics", "mlflow", "optuna", "matplotlib", "sklearn", "scipy", "ray"]
    code = f"import sys, sweeper.cli; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"
