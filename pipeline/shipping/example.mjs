// Classify photographs: npm ci, then node predict.mjs PHOTO...

import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import sharp from "sharp";
import { flatten, probabilities, render } from "./contract.mjs";

if (process.argv.length < 3) {
  console.error("usage: node predict.mjs PHOTO...");
  process.exit(2);
}
const read = (name) => readFileSync(new URL(name, import.meta.url));
const [labels, { input, task }] = ["labels.json", "model.json"].map((name) => JSON.parse(read(name)));
const session = await ort.InferenceSession.create(read("MODEL.onnx"));
for (const file of process.argv.slice(2)) {
  const { data, width, height } = await decode(file);
  const pixels = render(flatten(data), width, height, input);
  const { logits } = await session.run({ images: new ort.Tensor("uint8", pixels, [1, input.size, input.size, 3]) });
  const shares = probabilities(logits.data, task);
  const best = labels.map((_, index) => index).sort((a, b) => shares[b] - shares[a]).slice(0, 3);
  const cells = [file, ...best.map((index) => `${labels[index]} ${(100 * shares[index]).toFixed(2)}%`)];
  // Names are text: a terminal would obey the control characters in them.
  const escaped = (character) => `\\u{${character.codePointAt(0).toString(16)}}`;
  console.log(cells.map((cell) => cell.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, escaped)).join("\t"));
}

/** The first frame as RGBA, upright, without colour conversion; 16-bit grey is divided by 257 and rounded. */
async function decode(file) {
  const image = sharp(file, { ignoreIcc: true }).autoOrient();
  const { depth, hasAlpha, space } = await image.metadata();
  if (!["uchar", "ushort"].includes(depth)) throw new Error(`${file}: values of type ${depth}; convert them to 8 bits`);
  const wide = space === "grey16" && !hasAlpha;
  const pixels = wide ? image.toColourspace("grey16") : image.toColourspace("srgb").ensureAlpha();
  const raw = pixels.raw({ depth: wide ? "ushort" : "uchar" });
  const { data, info } = await raw.toBuffer({ resolveWithObject: true });
  if (!wide) return { data, ...info };
  const grey = new Uint16Array(data.buffer, data.byteOffset, data.length / 2);
  const rgba = Uint8Array.from({ length: 4 * grey.length }, (_, at) => (at % 4 < 3 ? Math.round(grey[at >> 2] / 257) : 255));
  return { data: rgba, ...info };
}
