// A button that runs the page's committed cells in the reader's browser; then they can be changed.
import { python } from "./python.js";

const CELLS = [...document.querySelectorAll("div.cell")].filter((cell) => cell.querySelector(".cell_input pre"));
const RUNNER = `
import ast, base64, contextlib, io, traceback
import matplotlib
matplotlib.use("agg")
from matplotlib import pyplot
names = {"__name__": "__main__"}

def run_cell(source):
    said, pictures, wrong = io.StringIO(), [], ""
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            tree = ast.parse(source)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<cell>", "exec"), names)
            if last is not None and (value := eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)) is not None:
                print(repr(value))
        except BaseException as error:
            wrong = "".join(traceback.format_exception_only(error))
    for number in pyplot.get_fignums():
        file = io.BytesIO()
        pyplot.figure(number).savefig(file, format="png", dpi=110, bbox_inches="tight")
        pictures.append(base64.b64encode(file.getvalue()).decode())
    pyplot.close("all")
    return [said.getvalue(), wrong, pictures]
pyplot.show = lambda *args, **kwargs: None
run_cell
`;

const state = document.createElement("p");
const button = document.createElement("button");
button.type = "button";
button.className = "btn btn-primary";
button.id = "run-page";
button.textContent = "Run this page in your browser";
state.setAttribute("role", "status");
state.textContent = "About 20 MB are fetched from cdn.jsdelivr.net after a click, and nothing before.";
CELLS[0]?.before(button, state);

let runCell;

function show(cell, [text, wrong, pictures]) {
  let place = cell.querySelector(".cell_output");
  if (!place) {
    if (!text && !wrong && !pictures.length) return;
    place = document.createElement("div");
    place.className = "cell_output docutils container";
    cell.append(place);
  }
  place.replaceChildren();
  for (const [said, name] of [[text, ""], [wrong, "run-error"]]) {
    if (!said) continue;
    const pre = document.createElement("pre");
    pre.className = name;
    pre.textContent = said;
    place.append(pre);
  }
  for (const picture of pictures) {
    const image = document.createElement("img");
    image.src = `data:image/png;base64,${picture}`;
    image.alt = "the figure of this cell";
    place.append(image);
  }
}

function editable(cell) {
  const input = cell.querySelector(".cell_input");
  if (cell.code) return;
  const code = input.querySelector("pre").textContent.replace(/\n$/, "");
  cell.code = document.createElement("textarea");
  cell.code.className = "run-code";
  cell.code.value = code;
  cell.code.rows = code.split("\n").length + 1;
  cell.code.spellcheck = false;
  cell.code.setAttribute("aria-label", "the code of this cell");
  input.replaceChildren(cell.code);
}

async function run() {
  button.disabled = true;
  try {
    if (!runCell) {
      state.textContent = "Python, NumPy and matplotlib are being fetched ...";
      runCell = (await python(["numpy", "matplotlib"])).runPython(RUNNER);
    }
    for (const [number, cell] of CELLS.entries()) {
      state.textContent = `Cell ${number + 1} of ${CELLS.length} ...`;
      editable(cell);
      await new Promise((done) => setTimeout(done)); // the page is drawn between two cells
      const found = runCell(cell.code.value);
      const shown = found.toJs(); // text, error, pictures
      found.destroy();
      show(cell, shown);
      if (shown[1]) return void (state.textContent = `Cell ${number + 1} ended with an error. Change it, and run all again.`);
    }
    state.textContent = "All cells have run. Change one, and run all again.";
  } catch (error) {
    state.textContent = `${error.message} Nothing has run.`;
  } finally {
    button.disabled = false;
    button.textContent = "Run all again";
  }
}
button.addEventListener("click", run);
