"""The notebooks of examples/ run from top to bottom, and are kept without outputs."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    return [
        cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
    ]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does: the value of its last line, where that is an expression, comes back."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    values = [run_cell("".join(cell["source"]), names) for cell in cells(path)]
    if path.stem == "restore_a_photo":
        assert values[1][0][0] == "rainy"
        assert any(
            hasattr(value, "_repr_png_") and value._repr_png_().startswith(b"\x89PNG") for value in values
        )
        assert (tmp_path / "rainy.restored.jpg").exists()
    else:
        before, after = values[2]
        assert after > before + 1
        assert "Treated: rainy" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_notebooks_are_kept_without_outputs() -> None:
    assert len(NOTEBOOKS) == 2
    kept = [cell for path in NOTEBOOKS for cell in cells(path)]
    assert not [cell for cell in kept if cell["outputs"] or cell["execution_count"] is not None]
