// Classify photographs: npm ci, then node predict.mjs PHOTO...

import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import sharp from "sharp";

if (process.argv.length < 3) {
  console.error("usage: node predict.mjs PHOTO...");
  process.exit(2);
}
const read = (name) => readFileSync(new URL(name, import.meta.url));
const labels = JSON.parse(read("labels.json"));
const session = await ort.InferenceSession.create(read("PHOTO.onnx"));
// Names are text: a terminal would obey the control characters in them.
const escaped = (character) => `\\u{${character.codePointAt(0).toString(16)}}`;
const printable = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, escaped);
for (const file of process.argv.slice(2)) {
  try {
    const { pixels, width, height } = await decode(file);
    const image = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
    const shares = (await session.run({ image })).probabilities.data;
    const best = labels.map((_, index) => index).sort((a, b) => shares[b] - shares[a]).slice(0, 3);
    const cells = [file, ...best.map((index) => `${labels[index]} ${(100 * shares[index]).toFixed(2)}%`)];
    console.log(cells.map(printable).join("\t"));
  } catch (error) {
    console.error(printable(`${file}: ${error.message}`));
    process.exitCode = 1;
  }
}

/** The first frame as RGB, upright, on white, without colour conversion; 16-bit grey is divided by 257 and rounded. */
async function decode(file) {
  const image = sharp(file, { ignoreIcc: true }).autoOrient();
  const { depth, hasAlpha, space } = await image.metadata();
  if (!["uchar", "ushort"].includes(depth)) throw new Error(`values of type ${depth}; convert them to 8 bits`);
  const kind = space === "cmyk" || (space === "grey16" && !hasAlpha) ? space : "srgb";
  const decoded = kind === "srgb" ? image.toColourspace(kind).ensureAlpha() : image.pipelineColourspace(kind).toColourspace(kind);
  const raw = decoded.raw({ depth: kind === "grey16" ? "ushort" : "uchar" });
  const { data, info } = await raw.toBuffer({ resolveWithObject: true });
  const values = kind === "grey16" ? new Uint16Array(data.buffer, data.byteOffset, data.length / 2) : data;
  const pixels = new Uint8Array(3 * info.width * info.height);
  for (let at = 0; at < pixels.length; at++) {
    const pixel = Math.floor(at / 3);
    const [value, last] = [values[info.channels * pixel + (at % 3)], values[info.channels * pixel + 3]];
    if (kind === "grey16") pixels[at] = Math.round(values[pixel] / 257);
    else if (kind === "cmyk") pixels[at] = 255 - last - Math.round((value * (255 - last)) / 255); // `last` is black
    else pixels[at] = Math.round((value * last) / 255 + 255 - last); // `last` is opacity
  }
  return { pixels, width: info.width, height: info.height };
}
