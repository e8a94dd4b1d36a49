"""Run notebooks: one with papermill, failing on what that lets through; its recipe often in one kernel; or the series.

    python -m series.run [01 02 ...] [--model MODEL]

papermill reports success when a cell calls ``sys.exit(0)`` and no later cell runs, when a shell or
install line fails, when a parameter's name is mistyped, and when processes or temporary files are left behind.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient

from series import notebooks
from series.artifacts import ROOT

SHELL_LINE = re.compile(
    r"^\s*(\w+\s*=\s*)?(!|%(pip|conda|sx|system)\b|%%(bash|sh|script|system|sx)\b|get_ipython\(\)|os\.system\()", re.M
)
MARK = "SERIES_RUN"
TORCHS_CACHE = "torchinductor_"  # torch keeps what it compiled for the next process
FREE = """
import gc
if "llm" in globals() and hasattr(llm, "llm_engine"):
    from series.quirks import vllm
    vllm.end(llm)
for name in ("model", "llm", "pipe", "fresh"):
    globals().pop(name, None)
lesson.close()
gc.collect()
"""
PATIENCE = 60.0  # seconds that a process has to end after the notebook


class NotebookFailed(RuntimeError):
    """The notebook did not do what it should; the message says where."""


def execute(
    notebook: pathlib.Path | nbformat.NotebookNode,
    output: pathlib.Path,
    parameters: dict[str, Any] | None = None,
    timeout: int = 900,
    progress: bool = False,
) -> nbformat.NotebookNode:
    """Execute ``notebook`` from its own folder in a fresh kernel and write it to ``output``.

    Args:
        notebook: its file; or a changed copy in memory of one of the series, which runs where that lies.
        parameters: values for the cell tagged ``parameters``; unknown names are refused.
        timeout: seconds that one cell may take.

    Raises:
        NotebookFailed: an error, a time-out, a cell that never ran, a shell line, an unknown
            parameter, or a process or a temporary file left behind.
    """
    output = pathlib.Path(output).resolve()
    if isinstance(notebook, nbformat.NotebookNode):
        name, folder, source = output.name, notebooks.FOLDER, notebook
    else:
        notebook = pathlib.Path(notebook).resolve()
        name, folder, source = notebook.name, notebook.parent, nbformat.read(notebook, as_version=4)
    for number, cell in enumerate(source.cells):
        if cell.cell_type == "code" and SHELL_LINE.search(cell.source):
            advice = "a shell line fails silently; use subprocess.run(..., check=True)"
            raise NotebookFailed(f"{name}, cell {number}: {advice}")
    known = papermill.inspect_notebook(source)
    unknown = set(parameters or {}) - set(known)
    if unknown:
        raise NotebookFailed(f"{name} has no parameter {sorted(unknown)}; it has {sorted(known)}")

    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)  # what an earlier run left must not be read as this one's
    mark, before = uuid.uuid4().hex, os.environ.get("TMPDIR")
    temporary = pathlib.Path(tempfile.mkdtemp(prefix="series-"))
    os.environ |= {MARK: mark, "TMPDIR": str(temporary)}  # for the kernel and everything that it starts
    try:
        done = papermill.execute_notebook(
            source,
            str(output),
            parameters=parameters or {},
            cwd=str(folder),
            kernel_name=source.metadata.get("kernelspec", {}).get("name", "python3"),
            progress_bar=progress,
            execution_timeout=timeout,
            extra_arguments=["--IPKernelApp.log_level=50"],  # the kernel's remarks on its own transport
        )
    except NoSuchKernel as error:
        raise NotebookFailed(f"{name} needs the kernel {error.name!r}: type 'make original'.") from None
    except Exception as error:  # PapermillExecutionError, CellTimeoutError, DeadKernelError
        raise NotebookFailed(f"{name}: {type(error).__name__}: {str(error)[-3000:]}") from None
    finally:
        del os.environ[MARK], os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before
        left = _left_behind(mark)
        files = sorted(path.name for path in temporary.iterdir() if not path.name.startswith(TORCHS_CACHE))
        shutil.rmtree(temporary, ignore_errors=True)
    check_outputs(done, name)
    if left:
        raise NotebookFailed(f"{name} left processes behind: {left}")
    if files:
        raise NotebookFailed(f"{name} left temporary files behind: {files}")
    return done


def check_outputs(notebook: nbformat.NotebookNode, name: str) -> None:
    """Raise NotebookFailed unless every code cell ran once, in order, without an error."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        raise NotebookFailed(f"{name}: not every cell ran in order (execution counts {counts})")
    for number, cell in enumerate(code, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                raise NotebookFailed(f"{name}, In [{number}]: {output.ename}: {output.evalue}")


def _left_behind(mark: str) -> list[str]:
    """Processes that carry the mark; they get ``PATIENCE`` to end, then are killed and named."""

    def marked() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    end = time.time() + PATIENCE
    while (left := marked()) and time.time() < end:
        time.sleep(0.2)
    names = []
    for process in left:
        try:
            names.append(" ".join(process.cmdline())[:120])
            process.kill()
        except psutil.Error:
            continue
    return names


def in_one_kernel(
    notebook: str, runs: list[dict[str, Any]], whole: bool = False, after_start: str = ""
) -> Iterator[dict[str, Any]]:
    """Run a notebook's recipe and measure again and again in one kernel; yield each run's parameters as it ends.

    Args:
        runs: parameters that differ from the notebook's own, for each run.
        whole: its lessons as well.
        after_start: code that goes after the cell ``start``.
    """
    cells = notebooks.cells(notebook)
    wanted = [c for c in cells if c["id"] in ("start", "measure") or "copy" in c["tags"]]
    if whole:
        wanted = [c for c in cells if c["cell_type"] == "code" and c["id"] != "setup"]
        wanted = [c for c in wanted if not {"parameters", "check"} & {*c["tags"]}]
    setup = [f"import sys; sys.path.insert(0, {str(notebooks.ROOT)!r}); import pathlib, subprocess"]
    client = NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=7200,
        resources={"metadata": {"path": str(notebooks.FOLDER)}},
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=50"],
    )
    with client.setup_kernel():
        place = itertools.count()
        for parameters in runs:
            given = notebooks.default_parameters(notebook) | parameters
            setup.append("\n".join(f"{name} = {value!r}" for name, value in given.items()))
            sources = [c["source"] + (f"\n{after_start}" if c["id"] == "start" else "") for c in wanted]
            for source in [*setup, *sources, FREE]:
                client.nb.cells.append(nbformat.v4.new_code_cell(source))
                number = next(place)
                client.execute_cell(client.nb.cells[number], number)
            setup = []
            yield parameters


def chosen(numbers: list[str]) -> list[pathlib.Path]:
    """The notebooks whose names start with one of ``numbers``; all of them when none is given."""
    found = sorted(notebooks.FOLDER.glob("[0-9][0-9]_*.ipynb"))
    wrong = [n for n in numbers if not any(p.name.startswith(n) for p in found)]
    if wrong:
        raise SystemExit(f"There is no notebook {', '.join(wrong)}. There are: {', '.join(p.stem for p in found)}.")
    wanted = [p for p in found if not numbers or any(p.name.startswith(n) for n in numbers)]
    return sorted(wanted, key=lambda path: path.stem.startswith("07"))  # which shows what the others have left


def outputs_folder() -> pathlib.Path:
    """$QUANT_EXECUTED, or ``executed`` in the repository."""
    return pathlib.Path(os.environ.get("QUANT_EXECUTED") or ROOT / "executed").expanduser().resolve()


def to_the_answer(done: nbformat.NotebookNode) -> float | None:
    """Seconds from the first cell to the first answer, as papermill took them down."""
    total = 0.0
    for cell in done.cells:
        total += cell.metadata.get("papermill", {}).get("duration") or 0
        if cell.id == "ask":
            return total
    return None


def run(paths: list[pathlib.Path], model: str) -> None:
    """Execute ``paths`` into the folder of executed ones, and print the seconds that each took."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin beside another program wait for one another
    for number, path in enumerate(paths, 1):
        print(f"[{number}/{len(paths)}] {path.stem}", flush=True)
        begun, parameters = time.perf_counter(), {} if model == "tiny" else {"MODEL": model}
        target = outputs_folder() / path.name
        try:
            done = execute(path, target, parameters, timeout=7200, progress=sys.stderr.isatty())
        except NotebookFailed as error:
            where = f" What it printed is in {target}" if target.exists() else ""
            raise SystemExit(f"{error}\n\n{path.stem} failed.{where}") from None
        answer = to_the_answer(done)
        first = f", the first answer after {answer:.0f} s" if answer is not None else ""
        print(f"      done in {time.perf_counter() - begun:.0f} s{first}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute notebooks into the folder of executed ones.")
    parser.add_argument("notebooks", nargs="*", help="numbers, such as 01 05; all when none is given")
    parser.add_argument("--model", default="tiny", help="the parameter MODEL")
    given = parser.parse_args()
    run(chosen(given.notebooks), given.model)


if __name__ == "__main__":
    main()
