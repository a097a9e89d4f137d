// Pillow's resizing, byte for byte: the centred square of an image in the size that a shipped file reads.
public final class Square {
  private record Taps(int length, int[] first, int[] count, int[] weights) {}

  private static Taps taps(int in, float from, float to, int out) {
    double scale = (double) (to - from) / out, stretch = Math.max(scale, 1);
    int length = (int) Math.ceil(stretch) * 2 + 1;
    Taps t = new Taps(length, new int[out], new int[out], new int[out * length]);
    double[] exact = new double[length];
    for (int o = 0; o < out; o++) {
      double centre = from + (o + 0.5) * scale, sum = 0;
      int low = Math.max(0, (int) (centre - stretch + 0.5)), high = Math.min(in, (int) (centre + stretch + 0.5));
      for (int i = low; i < high; i++)
        sum += exact[i - low] = Math.max(0, 1 - Math.abs((i - centre + 0.5) * (1 / stretch)));
      for (int i = low; i < high; i++)
        t.weights[o * length + i - low] = (int) (exact[i - low] / sum * (1 << 22) + 0.5);
      t.first[o] = low;
      t.count[o] = high - low;
    }
    return t;
  }

  private static byte[] pass(byte[] in, int lines, int next, int step, int nextOut, int stepOut, Taps t) {
    byte[] result = new byte[lines * t.first.length * 3];
    for (int line = 0; line < lines; line++)
      for (int o = 0; o < t.first.length; o++)
        for (int c = 0; c < 3; c++) {
          int sum = 1 << 21, from = line * next + t.first[o] * step + c;
          for (int i = 0; i < t.count[o]; i++) sum += (in[from + i * step] & 255) * t.weights[o * t.length + i];
          result[line * nextOut + o * stepOut + c] = (byte) (sum >> 22);
        }
    return result;
  }

  /** The centred square of an upright image of RGB bytes, bilinear and antialiased. */
  public static byte[] render(byte[] rgb, int width, int height, int size, double crop) {
    double side = crop * Math.min(width, height), left = (width - side) / 2, top = (height - side) / 2;
    Taps across = taps(width, (float) left, (float) (left + side), size);
    Taps down = taps(height, (float) top, (float) (top + side), size);
    if (height > size && height - size > 2 * (width - size))
      return pass(pass(rgb, width, 3, width * 3, 3, width * 3, down), size, width * 3, 3, size * 3, 3, across);
    return pass(pass(rgb, height, width * 3, 3, size * 3, 3, across), size, 3, size * 3, 3, size * 3, down);
  }
}
