// Python in the reader's browser: Pyodide, each file of which is checked against the hash that stands here or in
// pyodide-lock.json, an extract of the release's own. Nothing is fetched before python() is called.
const RELEASE = "https://cdn.jsdelivr.net/pyodide/v0.27.7/full/";
const HASHES = {
  "pyodide.js": "sha256-tMsjpTq6GcIhZZuftAovGCgdaFaR3AZkf7Cv0Ggbr5g=",
  "pyodide.asm.js": "sha256-a0yQ3ltxcoc/BPIYhNDp0idOMF/jIRZVj+Pk++NhjVE=",
  "pyodide.asm.wasm": "sha256-pQ3RhD+AWgt8RbYQN+4Neybf6F7+DhjvlaNK0k5AH18=",
  "python_stdlib.zip": "sha256-FmEVNHJuXYrCvY+SZBCy3LjW9JqiSRNGNTO0V6IRXBY=",
};
const HERE = new URL(".", import.meta.url);

function script(name, base) {
  return new Promise((done, failed) => {
    const element = document.createElement("script");
    element.src = base + name;
    element.integrity = HASHES[name];
    element.crossOrigin = "anonymous";
    element.onload = done;
    element.onerror = () => failed(new Error(`${name} could not be fetched from ${base}, or is not the file that it should be.`));
    document.head.append(element);
  });
}

async function start(packages) {
  const base = window.PYODIDE_BASE ?? RELEASE; // a copy of the release, for a place without a network
  const plain = window.fetch;
  window.fetch = (what, how) => {
    const name = String(what.url ?? what).split("/").pop();
    return plain(what, name in HASHES ? { ...how, integrity: HASHES[name] } : how);
  };
  try {
    const lock = await (await plain(new URL("pyodide-lock.json", HERE))).json();
    for (const each of Object.values(lock.packages)) each.file_name = base + each.file_name;
    const lockFileURL = URL.createObjectURL(new Blob([JSON.stringify(lock)], { type: "application/json" }));
    await script("pyodide.js", base);
    await script("pyodide.asm.js", base);
    const pyodide = await loadPyodide({ indexURL: base, lockFileURL });
    if (packages.length) await pyodide.loadPackage(packages, { messageCallback: () => {} });
    const ours = await plain(new URL("ours.zip", HERE));
    pyodide.unpackArchive(await ours.arrayBuffer(), "zip");
    return pyodide;
  } finally {
    window.fetch = plain;
  }
}

let running; // one Python a page; after a failure, the next call tries again
export const python = (packages = []) =>
  (running ??= start(packages).catch((error) => {
    running = undefined;
    throw error;
  }));
