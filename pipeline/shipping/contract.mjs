// What a shipped file does not contain: how to make its input from an image, and probabilities from its logits.

// Resizing is Pillow 13's `image.resize((size, size), BILINEAR, box=centred square)`, byte for byte: antialiased, in
// two passes of 8-bit fixed point (https://github.com/python-pillow/Pillow/blob/13.0.0/src/libImaging/Resample.c).

const PRECISION_BITS = 32 - 8 - 2;
const HALF = 1 << (PRECISION_BITS - 1);

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic },
};

function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/**
 * Crop the centred square of an image and resize it.
 *
 * @param {Uint8Array | Uint8ClampedArray} source rows of pixels, 3 bytes each (RGB) or 4 (RGBA; A is ignored).
 * @param {{size: number, crop: number, interpolation: "bilinear" | "bicubic"}} rule `input` of the file's metadata.
 * @returns {Uint8Array} `[size, size, 3]`, RGB.
 */
export function render(source, width, height, rule) {
  const { size } = rule;
  const side = rule.crop * Math.min(width, height);
  const [left, top] = [(width - side) / 2, (height - side) / 2];
  const across = taps(width, left, left + side, size, FILTERS[rule.interpolation]);
  const down = taps(height, top, top + side, size, FILTERS[rule.interpolation]);
  const channels = source.length / (width * height);
  // Each pass rounds to bytes, so their order matters; since version 13, Pillow reverses it for tall images.
  const tall = height > size && height - size > 2 * (width - size);
  if (tall) {
    const short = pass(source, width, [channels, width * channels], [3, width * 3], down);
    return new Uint8Array(pass(short, size, [width * 3, 3], [size * 3, 3], across).buffer);
  }
  // Only the rows that the second pass reads are resized.
  const { first, end, starts } = down;
  const rows = source.subarray(first * width * channels);
  const narrow = pass(rows, end - first, [width * channels, channels], [size * 3, 3], across);
  const shifted = { ...down, starts: starts.map((start) => start - first) };
  return new Uint8Array(pass(narrow, size, [3, size * 3], [3, size * 3], shifted).buffer);
}

/**
 * Probabilities of mutually exclusive classes, or of each attribute independently.
 *
 * @param {Float32Array} logits of one image.
 * @param {string} task `task` of the file's metadata.
 */
export function probabilities(logits, task) {
  if (task === "multi-label-image-classification") return Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit)));
  const powers = Array.from(logits, (logit) => Math.exp(logit - Math.max(...logits)));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** The input pixels that make up each output pixel, and their weights in fixed point. */
function taps(inSize, from, to, outSize, filter) {
  // Pillow keeps the box in 32-bit floats.
  const start = Math.fround(from);
  const scale = Math.fround(Math.fround(to) - start) / outSize;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const length = Math.ceil(support) * 2 + 1;
  const weights = new Int32Array(outSize * length);
  const starts = new Int32Array(outSize);
  const counts = new Int32Array(outSize);
  for (let out = 0; out < outSize; out++) {
    const centre = start + (out + 0.5) * scale;
    const low = Math.max(0, Math.trunc(centre - support + 0.5));
    const high = Math.min(inSize, Math.trunc(centre + support + 0.5));
    const exact = Array.from({ length: high - low }, (_, x) =>
      filter.weight((x + low - centre + 0.5) * (1 / stretch)),
    );
    const sum = exact.reduce((total, weight) => total + weight, 0);
    exact.forEach((weight, x) => {
      const fixed = (weight / sum) * (1 << PRECISION_BITS);
      weights[out * length + x] = Math.trunc(fixed + (fixed < 0 ? -0.5 : 0.5));
    });
    starts[out] = low;
    counts[out] = high - low;
  }
  return { weights, starts, counts, length, first: starts[0], end: starts.at(-1) + counts.at(-1) };
}

/**
 * Resize every line of an image, where a line is a row or a column.
 *
 * @param {[number, number]} input bytes of `pixels` from one line to the next, and from one pixel of a line to the next.
 * @param {[number, number]} output the same for the result, which has 3 bytes per pixel.
 */
function pass(pixels, lines, [nextLine, nextPixel], [nextLineOut, nextPixelOut], { weights, starts, counts, length }) {
  const size = starts.length;
  const resized = new Uint8ClampedArray(lines * size * 3);
  for (let line = 0; line < lines; line++) {
    for (let out = 0; out < size; out++) {
      let from = line * nextLine + starts[out] * nextPixel;
      let [red, green, blue] = [HALF, HALF, HALF];
      for (let tap = out * length, last = tap + counts[out]; tap < last; tap++, from += nextPixel) {
        red += pixels[from] * weights[tap];
        green += pixels[from + 1] * weights[tap];
        blue += pixels[from + 2] * weights[tap];
      }
      const at = line * nextLineOut + out * nextPixelOut;
      resized[at] = red >> PRECISION_BITS;
      resized[at + 1] = green >> PRECISION_BITS;
      resized[at + 2] = blue >> PRECISION_BITS;
    }
  }
  return resized;
}
