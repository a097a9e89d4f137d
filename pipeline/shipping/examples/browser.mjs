// Classify photographs in a browser. The bare name of npm's onnxruntime-web needs a bundler or an
// import map.
//
//   import { classify } from "./browser.mjs";
//   const [[label, probability]] = await classify(input.files[0]);

import * as ort from "onnxruntime-web";

const file = (name) => new URL(name, import.meta.url).href;
const labels = await (await fetch(file("labels.json"))).json();
const session = await ort.InferenceSession.create(file("PHOTO.onnx"));

/** Labels with their probabilities, the best first, of a photograph: a Blob, such as a File. */
export async function classify(photograph) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(photograph, options); // upright
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // under what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const rgb = data.filter((_, at) => at % 4 < 3);
  const image = new ort.Tensor("uint8", new Uint8Array(rgb.buffer), [1, height, width, 3]);
  const { probabilities } = await session.run({ image });
  const pairs = labels.map((label, index) => [label, probabilities.data[index]]);
  return pairs.sort((a, b) => b[1] - a[1]);
}
