// Pillow's resizing, byte for byte: the centred square of an image in the size that a shipped file reads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

struct Taps {
  int length;
  std::vector<int> first, count;
  std::vector<std::int32_t> weights;  // fixed point with 22 fractional bits
};

inline Taps taps(int in, float from, float to, int out) {
  const double scale = static_cast<double>(to - from) / out, stretch = std::max(scale, 1.0);
  const int length = static_cast<int>(std::ceil(stretch)) * 2 + 1;
  Taps t{length, std::vector<int>(out), std::vector<int>(out), std::vector<std::int32_t>(out * length)};
  std::vector<double> exact(length);
  for (int o = 0; o < out; ++o) {
    const double centre = from + (o + 0.5) * scale;
    const int low = std::max(0, static_cast<int>(centre - stretch + 0.5));
    const int high = std::min(in, static_cast<int>(centre + stretch + 0.5));
    double sum = 0;
    for (int i = low; i < high; ++i)
      sum += exact[i - low] = std::max(0.0, 1 - std::abs((i - centre + 0.5) * (1 / stretch)));
    for (int i = low; i < high; ++i)
      t.weights[o * length + i - low] = static_cast<int>(exact[i - low] / sum * (1 << 22) + 0.5);
    t.first[o] = low, t.count[o] = high - low;
  }
  return t;
}

// next and step are the distances in bytes between lines and between the pixels of a line, of the input;
// next_out and step_out are those of the output.
inline std::vector<std::uint8_t> pass(const std::vector<std::uint8_t>& in, int lines, int next, int step,
                                      int next_out, int step_out, const Taps& t) {
  const int out = static_cast<int>(t.first.size());
  std::vector<std::uint8_t> result(static_cast<std::size_t>(lines) * out * 3);
  for (int line = 0; line < lines; ++line)
    for (int o = 0; o < out; ++o)
      for (int c = 0; c < 3; ++c) {
        std::int32_t sum = 1 << 21;
        for (int i = 0; i < t.count[o]; ++i)
          sum += in[static_cast<std::size_t>(line) * next + static_cast<std::size_t>(t.first[o] + i) * step + c] *
                 t.weights[o * t.length + i];
        result[static_cast<std::size_t>(line) * next_out + static_cast<std::size_t>(o) * step_out + c] = sum >> 22;
      }
  return result;
}

// The centred square of an upright RGB image, bilinear and antialiased: size * size * 3 bytes.
inline std::vector<std::uint8_t> render(const std::vector<std::uint8_t>& rgb, int width, int height, int size,
                                        double crop) {
  const double side = crop * std::min(width, height), left = (width - side) / 2, top = (height - side) / 2;
  const Taps across = taps(width, left, left + side, size), down = taps(height, top, top + side, size);
  if (height > size && height - size > 2 * (width - size)) {
    const auto rows = pass(rgb, width, 3, width * 3, 3, width * 3, down);
    return pass(rows, size, width * 3, 3, size * 3, 3, across);
  }
  const auto columns = pass(rgb, height, width * 3, 3, size * 3, 3, across);
  return pass(columns, size, 3, size * 3, 3, size * 3, down);
}
