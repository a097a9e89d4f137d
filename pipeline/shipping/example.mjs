// Classify photographs: npm ci, then node predict.mjs PHOTO...

import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import sharp from "sharp";
import { probabilities, render } from "./contract.mjs";

const read = (name) => readFileSync(new URL(name, import.meta.url));
const [labels, { input, task }] = ["labels.json", "model.json"].map((name) => JSON.parse(read(name)));
const session = await ort.InferenceSession.create(read("MODEL.onnx"));
for (const file of process.argv.slice(2)) {
  const image = sharp(file, { ignoreIcc: true }).autoOrient().toColourspace("srgb").removeAlpha();
  const { data, info } = await image.raw().toBuffer({ resolveWithObject: true });
  const pixels = render(data, info.width, info.height, input);
  const { logits } = await session.run({ images: new ort.Tensor("uint8", pixels, [1, input.size, input.size, 3]) });
  const shares = probabilities(logits.data, task);
  const best = labels.map((_, index) => index).sort((a, b) => shares[b] - shares[a]).slice(0, 3);
  const cells = [file, ...best.map((index) => `${labels[index]} ${(100 * shares[index]).toFixed(2)}%`)];
  // Names are text: a terminal would obey the control characters in them.
  const escaped = (character) => `\\u{${character.codePointAt(0).toString(16)}}`;
  console.log(cells.map((cell) => cell.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, escaped)).join("\t"));
}
