"""Run a notebook with papermill, and fail on what papermill lets through.

papermill reports success when a cell calls ``sys.exit(0)`` and no later cell runs, when a shell or
install line fails, when a parameter's name is mistyped, and when processes or temporary files are left behind.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import tempfile
import time
import uuid
from typing import Any

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import NoSuchKernel

SHELL_LINE = re.compile(
    r"^\s*(\w+\s*=\s*)?(!|%(pip|conda|sx|system)\b|%%(bash|sh|script|system|sx)\b|get_ipython\(\)|os\.system\()", re.M
)
MARK = "SERIES_RUN"
NOTEBOOKS = pathlib.Path(__file__).resolve().parents[1] / "notebooks"
TORCHS_CACHE = "torchinductor_"  # torch keeps what it compiled for the next process
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
        name, folder, source = output.name, NOTEBOOKS, notebook
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
