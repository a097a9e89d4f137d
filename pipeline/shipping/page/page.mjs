// The user interface: the variants with their scores, the photo, and the answers of each variant.

const SHOWN = 3;
const NAMED = 12; // classes that the page names
const METRICS = { top1: "top-1", map: "mAP" };
const DEVICES = { webgpu: "WebGPU", wasm: "CPU" };

const at = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
const manifest = fetch("manifest.json").then((response) => response.json());
const rows = new Map(); // variant to {entry, element, ready, best}
let current = 0; // number of the photo; answers to earlier photos are ignored
let problem = ""; // an error message, shown until the next photo
let right = null; // the right answers, if the photo is a sample

worker.onerror = () => complain("This browser cannot run ONNX Runtime in a worker.");
worker.onmessage = ({ data }) => {
  if (data.failed || data.message) {
    rows.get(data.failed)?.element.classList.remove("loading");
    complain(`${data.failed ?? "This photo"} cannot be run in this browser: ${data.message}`);
  } else if (data.loaded) {
    const { element } = Object.assign(rows.get(data.loaded), { ready: true });
    element.classList.remove("loading");
    element.dataset.device = data.device;
    element.querySelector(".device").textContent = DEVICES[data.device];
    summarise();
  } else if (data.id !== current) {
    return;
  } else if (data.unreadable) {
    complain("This browser cannot read the file as an image.");
  } else if (data.medians) {
    for (const [variant, milliseconds] of Object.entries(data.medians)) tell(variant, milliseconds);
    document.body.dataset.timed = current;
  } else {
    guess(data);
    summarise();
  }
};

addEventListener("paste", ({ clipboardData }) => take(clipboardData.files[0]));
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || at("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
at("file").addEventListener("change", ({ target }) => {
  take(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});

const { variants, samples, recommendation } = await manifest;
at("recommendation").textContent = recommendation;
at("recommendation").hidden = !recommendation;
know(variants[0]);
samples.forEach(offer);
at("samples").hidden = !samples.length;
for (const entry of variants) {
  const element = at("variant").content.firstElementChild.cloneNode(true);
  element.id = entry.variant;
  rows.set(entry.variant, { entry, element });
  describe(element, entry);
  at("variants").append(element);
}
worker.postMessage({ variants });

function describe(element, { variant, size_bytes, metric, score, score_lo, score_hi, verdict }) {
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  element.querySelector("h2").textContent = variant;
  element.querySelector(".size").textContent = `${(size_bytes / 1e6).toFixed(2)} MB`;
  if (!metric) {
    element.querySelector(".metric").parentElement.remove();
    return;
  }
  element.querySelector(".metric").textContent = METRICS[metric];
  element.querySelector(".score").textContent = percent(score);
  element.querySelector(".score").title = `95% interval: ${percent(score_lo)} to ${percent(score_hi)}`;
  const gate = document.createElement("small");
  gate.className = verdict;
  gate.textContent = verdict === "accept" ? "accepted" : "rejected";
  element.querySelector("h2").append(gate);
}

/** Say what the variants can answer: all of them have the same classes. */
function know({ task, labels }) {
  const attributes = task.startsWith("multi");
  const shown = labels.slice(0, NAMED).flatMap((label, index) => [index ? ", " : "", name(label)]);
  const more = labels.length > NAMED ? [` and ${labels.length - NAMED} more`] : [];
  const kind = attributes ? "attributes" : "classes";
  const end = attributes ? "." : ". Whatever the photo shows, the answer is one of them.";
  at("known").replaceChildren(`The variants know ${labels.length} ${kind}: `, ...shown, ...more, end);
}

/** Add the button of one photo of the test set. */
function offer({ file, labels }, index) {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.setAttribute("aria-label", `Test photo ${index + 1}`);
  button.append(Object.assign(document.createElement("img"), { src: file, alt: "" }));
  button.addEventListener("click", async () => {
    const answer = await fetch(file).catch(() => null);
    if (answer?.ok) await take(await answer.blob(), labels, button);
    else complain("The test photo cannot be loaded.");
  });
  at("samples").querySelector(".strip").append(button);
}

async function take(file, labels = null, button = null) {
  if (!file) return;
  const number = ++current;
  right = labels;
  for (const other of at("samples").querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
  problem = "";
  clear();
  at("status").classList.remove("error");
  say("Reading the photo …");
  worker.postMessage({ id: number, file });
  await picture(file, number).catch(() => at("drop").classList.remove("full")); // the worker reports the error
}

function clear() {
  for (const row of rows.values()) {
    row.best = undefined;
    delete row.element.dataset.best;
    row.element.classList.remove("apart");
    row.element.querySelector(".guesses").replaceChildren();
    row.element.querySelector(".time").textContent = "";
  }
}

/** Draw the square that the variants see. */
async function picture(file, number) {
  const [bitmap, { variants: [{ input }] }] = await Promise.all([createImageBitmap(file), manifest]);
  if (number !== current) return;
  const side = Math.min(bitmap.width, bitmap.height) * input.crop;
  const canvas = at("photo");
  canvas.width = canvas.height = Math.min(Math.ceil(side), 1200);
  const [left, top] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, left, top, side, side, 0, 0, canvas.width, canvas.height);
  at("drop").classList.add("full");
}

function guess({ variant, shares, milliseconds }) {
  const row = rows.get(variant);
  const guesses = shares.map((share, index) => ({ share, label: row.entry.labels[index] }));
  guesses.sort((a, b) => b.share - a.share);
  row.best = row.element.dataset.best = guesses[0].label;
  row.element.querySelector(".guesses").replaceChildren(...guesses.slice(0, SHOWN).map(line));
  tell(variant, milliseconds);
}

function line({ share, label }) {
  const element = document.createElement("li");
  element.classList.toggle("right", Boolean(right?.includes(label)));
  element.style.setProperty("--share", share);
  for (const text of [label, `${(100 * share).toFixed(1)}%`]) {
    element.append(Object.assign(document.createElement("span"), { textContent: text }));
  }
  return element;
}

function tell(variant, milliseconds) {
  rows.get(variant).element.querySelector(".time").textContent = `${milliseconds.toFixed(1)} ms`;
}

function complain(text) {
  problem = text;
  summarise();
}

/** Show one sentence: an error, how far the variants agree, or the progress of loading. */
function summarise() {
  at("status").classList.toggle("error", Boolean(problem));
  if (problem) return say(problem);
  const all = [...rows.values()];
  const answers = all.filter(({ best }) => best);
  if (!answers.length) {
    const ready = all.filter((row) => row.ready).length;
    return say(ready < all.length ? `Loading the variants: ${ready} of ${all.length}` : "Ready.");
  }
  const votes = new Map();
  for (const { best } of answers) votes.set(best, (votes.get(best) ?? 0) + 1);
  const [label, count] = [...votes].reduce((most, vote) => (vote[1] > most[1] ? vote : most));
  const apart = answers.filter(({ best }) => best !== label);
  for (const row of answers) row.element.classList.toggle("apart", apart.includes(row));
  const others = apart.flatMap(({ entry, best }) => [`; ${entry.variant}: `, name(best)]);
  const truth = right && [" The right answer is ", ...(right.length ? right.flatMap((of, i) => [i ? ", " : "", name(of)]) : ["none"]), "."];
  say(`${apart.length ? `${count} of ${answers.length} variants` : "All variants"}: `, name(label), ...others, ".", ...(truth ?? []));
}

/** A name of a class, which may be written from right to left without turning the sentence around. */
function name(text) {
  return Object.assign(document.createElement("bdi"), { textContent: text });
}

function say(...parts) {
  at("status").replaceChildren(...parts);
}
