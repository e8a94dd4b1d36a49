// The page 'Will it fit?': what is asked goes to fit_page.py, in Python; what comes back is shown. No figure is made here.
import { python } from "./python.js";

const HUB = window.HUB ?? "https://huggingface.co";
const at = (name) => document.getElementById(`fit-${name}`);
const known = await (await fetch(new URL("fit-first.json", import.meta.url))).json();
let model = {}; // its name, its configuration, and what the hub lists
let reply; // of Python, when it has come
let turn = 0; // of two questions the later one is answered

const HEADERS = ["format", "GB", "needs", "fits", "users", "tokens/s", "see"];
const gb = (bytes) => (bytes == null ? "?" : (bytes / 1e9).toFixed(1));

function element(kind, text, parent) {
  const made = document.createElement(kind);
  made.textContent = text ?? "";
  parent?.append(made);
  return made;
}

function table(rows, place) {
  const box = element("div", "", place);
  box.className = "fit-wide";
  const made = element("table", "", box);
  const head = element("tr", "", element("thead", "", made));
  const ours = rows.some((row) => row.notebook);
  for (const name of ours ? HEADERS : ["file", ...HEADERS.slice(1, 4)]) element("th", name, head).scope = "col";
  const body = element("tbody", "", made);
  for (const row of rows) {
    const line = element("tr", "", body);
    line.className = row.fits ? "fit-yes" : "fit-no";
    const first = element("td", "", line);
    if (row.how) {
      const button = element("button", ours ? row.format : row.name, first);
      button.type = "button";
      button.addEventListener("click", () => command(row));
    } else element("span", ours ? row.format : row.name, first);
    if (row.left) element("small", " leaves the experts in 16 bits", first);
    for (const text of [gb(row.bytes), gb(row.needs), row.fits ? "yes" : "no"]) element("td", text, line);
    if (ours) {
      element("td", row.fits ? row.users.toLocaleString("en") : "", line);
      element("td", row.limit ? Math.round(row.limit).toLocaleString("en") : "", line);
      const link = element("a", row.notebook.slice(0, 2), element("td", "", line));
      link.href = `../notebooks/${row.notebook}.html`;
      link.title = row.notebook;
    }
  }
}

function command(row) {
  at("how").replaceChildren();
  element("span", `${row.notebook ? "To run" : "To fetch"} ${row.name.endsWith(".gguf") && !row.notebook ? row.name : row.format}: `, at("how"));
  element("code", row.how, at("how"));
}

function show(answer) {
  const place = at("answer");
  place.replaceChildren();
  if (answer.error) return void (element("p", answer.error, place).className = "fit-error");
  element("h2", model.name, place);
  for (const text of answer.about) element("p", text, place);
  const how = element("p", "", place);
  how.id = "fit-how";
  const best = [...answer.files, ...answer.rows].find((row) => row.how);
  if (best) command(best);
  if (answer.files.length) {
    element("h3", `What ${model.repository} has`, place);
    table(answer.files, place);
    element("h3", "Every format, by the sum", place);
  }
  table(answer.rows, place);
}

function asked() {
  const numbers = Object.fromEntries(["memory", "bandwidth", "context", "users"].map((name) => [name, at(name).value]));
  return { ...model, ...numbers, card: at("card").value, cache: at("cache").value };
}

// What the book's builder has computed is shown at once; Python is fetched when something else is asked.
async function update() {
  if (!model.config) return;
  const mine = ++turn;
  const question = asked();
  const computed = model.config === known.configs[model.name] && !+question.bandwidth && known.answers[model.name][question.card];
  const same = ([name, value]) => name === "card" || String(question[name] || 0) === String(value);
  if (computed && Object.entries(known.default).every(same)) return show(computed);
  try {
    if (!reply) {
      at("answer").replaceChildren();
      at("state").textContent = "Python is being fetched (about 13 MB, once) ...";
    }
    reply ??= await load();
    if (mine !== turn) return;
    at("state").textContent = "";
    show(JSON.parse(reply(JSON.stringify(question))));
  } catch (error) {
    if (mine !== turn) return;
    at("answer").replaceChildren();
    at("state").textContent = `${error.message} Without Python, only the known models with the settings above are shown.`;
  }
}

async function load() {
  const pyodide = await python();
  return pyodide.runPython("from fit_page import reply; reply");
}

class Said extends Error {}

async function get(address, name) {
  let answer;
  try {
    answer = await fetch(address, { credentials: "omit" });
  } catch {
    throw new Said("The hub cannot be reached from here. Paste the model's config.json instead.");
  }
  if (answer.ok) return answer.json();
  const why = {
    401: "it does not exist, or asks for a login; paste its config.json instead",
    403: "it asks for a login; paste its config.json instead",
    404: "there is no such repository, revision or file",
    429: "too many questions; wait a minute",
  };
  throw new Said(`The hub does not give ${name}: ${why[answer.status] ?? `it answered ${answer.status}`}.`);
}

// 'owner/name', with '@revision' or ':Q4_K_M', or the address of a page of the hub
function parsed(text) {
  const page = text.match(/^(?:https?:\/\/)?(?:www\.)?(?:huggingface\.co|hf\.co)\/([\w.-]+\/[\w.-]+)(?:\/(?:tree|blob|resolve|raw)\/([^/?#]+))?/);
  const plain = text.replace(/\/+$/, "").match(/^([\w.-]+\/[\w.-]+)(?:@([^:\s]+))?(?::[\w.-]+)?$/);
  const [, name, revision = "main"] = page ?? plain ?? [];
  if (!name) throw new Said(`${JSON.stringify(text)} is no model here, and no hub id such as owner/name.`);
  return { name, revision };
}

async function fromHub({ name, revision }) {
  const said = await get(`${HUB}/api/models/${name}/revision/${encodeURIComponent(revision)}?blobs=true`, name);
  const files = said.siblings ?? [];
  const has = (file) => files.some((each) => each.rfilename === file);
  const sizes = {};
  for (const file of files) if (/\.(safetensors|gguf)$/.test(file.rfilename) && file.size) sizes[file.rfilename] = file.size;
  const base = [said.cardData?.base_model].flat()[0];
  if (has("adapter_config.json") && !has("config.json"))
    throw new Said(`${name} is an adapter${base ? ` of ${base}: ask for that` : ""}. An adapter itself has a few MB.`);
  const found = { name, repository: name, base, sizes };
  const config = has("config.json") && (await get(`${HUB}/${name}/resolve/${encodeURIComponent(revision)}/config.json`, name));
  const whole = config && (config.num_hidden_layers || config.hidden_size || Object.values(config).some((part) => part?.hidden_size));
  if (whole) return { ...found, config };
  if (!base) throw new Said(`${name} has no whole config.json, and its page names no base model. Ask for the model that it was made of.`);
  return { ...found, config: await get(`${HUB}/${base}/resolve/main/config.json`, base) }; // of GGUF files
}

async function choose(event) {
  const text = at("model").value.trim();
  if (event?.target === at("model")) at("config").value = "";
  const mine = ++turn;
  at("answer").replaceChildren();
  at("state").textContent = "";
  model = {};
  try {
    let found;
    if (at("config").value.trim()) {
      try {
        found = { name: "your configuration", config: JSON.parse(at("config").value) };
      } catch (error) {
        throw new Said(`This is no config.json: ${error.message}.`);
      }
    } else if (text) {
      const { name, revision } = parsed(text);
      if (Object.hasOwn(known.configs, name)) found = { name, config: known.configs[name] };
      else at("state").textContent = "The hub is being asked ...";
      found ??= await fromHub({ name, revision });
    }
    if (mine !== turn) return;
    at("state").textContent = "";
    model = found ?? {};
    await update();
  } catch (error) {
    if (mine !== turn) return;
    at("state").textContent = "";
    if (!(error instanceof Said)) throw error;
    element("p", error.message, at("answer")).className = "fit-error";
  }
}

for (const name of Object.keys(known.configs)) element("option", "", at("models")).value = name;
for (const name of known.cards) element("option", name, at("card")).value = name;
element("option", "ordinary memory", at("card")).value = "";
for (const name of known.caches) element("option", name, at("cache")).value = name;
at("card").value = known.default.card;
at("form").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["model", "config"]) at(name).addEventListener("change", choose);
for (const name of ["card", "memory", "bandwidth", "context", "users", "cache"]) at(name).addEventListener("input", update);
at("model").value = "Qwen/Qwen3-8B";
await choose();
