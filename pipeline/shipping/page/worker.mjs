// Runs the variants in the background. One task at a time, the most urgent first: read a new photo, run the variants
// that are loaded, load the next variant (the smallest first), then measure times.

import { probabilities, render } from "./contract.mjs";

const ROUNDS = 10;

const waiting = []; // variants of the manifest that are not loaded yet
const loaded = []; // {variant, input, task, session, device}
let photo = null; // {id, file, source, width, height, rendered, asked, times}
let wake = () => {};

self.onmessage = ({ data }) => {
  if (data.variants) waiting.push(...data.variants.sort((a, b) => a.size_bytes - b.size_bytes));
  else photo = { ...data, rendered: new Map(), asked: new Set(), times: [] };
  wake();
};

// After the handler of messages: those that arrive before it are lost.
const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
const ort = await import(adapter ? "./ort.webgpu.min.mjs" : "./ort.wasm.min.mjs");
ort.env.wasm.numThreads = 1; // like the benchmark; and more threads would need special headers from the server

for (;;) {
  const work = next();
  if (work) await work().catch((error) => self.postMessage({ message: error.message }));
  // Messages arrive only between two tasks.
  await new Promise((resolve) => (work ? setTimeout(resolve) : (wake = resolve)));
}

function next() {
  if (photo && !photo.source) return () => read(photo);
  const silent = photo && loaded.find((entry) => !photo.asked.has(entry));
  if (silent) return () => ask(silent, photo);
  if (waiting.length) return () => load(waiting.shift());
  if (photo && photo.times.length < ROUNDS * loaded.length) return () => time(photo);
  return null;
}

async function load(entry) {
  try {
    const opened = runsOnGpu(entry) ? await open(entry, "webgpu").catch(() => open(entry, "wasm")) : await open(entry, "wasm");
    loaded.push(opened);
    self.postMessage({ loaded: entry.variant, device: opened.device });
  } catch (error) {
    self.postMessage({ failed: entry.variant, message: error.message });
  }
}

/** Whether WebGPU has the numbers of a variant; its int8 operators are computed on the CPU, with copies in between. */
function runsOnGpu({ numbers }) {
  return Boolean(adapter) && (numbers === "float32" || (numbers === "float16" && adapter.features.has("shader-f16")));
}

async function open(entry, device) {
  const url = new URL(entry.file, import.meta.url).href;
  const session = await ort.InferenceSession.create(url, { executionProviders: [device] });
  const opened = { ...entry, session, device };
  await answer(opened, new Uint8Array(entry.input.size ** 2 * 3)); // the first run allocates memory and compiles shaders
  return opened;
}

/** Read upright pixels as they are in the file, without colour conversion for the screen, on white. */
async function read(current) {
  try {
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    const bitmap = await createImageBitmap(current.file, options);
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white"; // under what is transparent
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    Object.assign(current, { source: context.getImageData(0, 0, width, height).data, width, height });
  } catch {
    if (photo === current) photo = null;
    self.postMessage({ id: current.id, unreadable: true });
  }
}

async function ask(entry, current) {
  current.asked.add(entry);
  const { logits, milliseconds } = await answer(entry, square(current, entry.input));
  const shares = probabilities(logits, entry.task);
  self.postMessage({ id: current.id, variant: entry.variant, shares, milliseconds });
}

/** Measure one more run; the variants take turns, so that a disturbance affects all of them. */
async function time(current) {
  const entry = loaded[current.times.length % loaded.length];
  const { milliseconds } = await answer(entry, square(current, entry.input));
  current.times.push(milliseconds);
  if (current.times.length < ROUNDS * loaded.length) return;
  const medians = loaded.map(({ variant }, turn) => {
    const own = current.times.filter((_, run) => run % loaded.length === turn).sort((a, b) => a - b);
    return [variant, own[own.length >> 1]];
  });
  self.postMessage({ id: current.id, medians: Object.fromEntries(medians) });
}

/** The input pixels of a variant for the current photo. */
function square({ source, width, height, rendered }, input) {
  const rule = JSON.stringify(input);
  if (!rendered.has(rule)) rendered.set(rule, render(source, width, height, input));
  return rendered.get(rule);
}

async function answer({ session, input }, pixels) {
  const images = new ort.Tensor("uint8", pixels, [1, input.size, input.size, 3]);
  const start = performance.now();
  const { logits } = await session.run({ images });
  return { logits: logits.data, milliseconds: performance.now() - start };
}
