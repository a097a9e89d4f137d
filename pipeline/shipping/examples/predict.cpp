// Classify photographs: ./predict PHOTO... in the folder of PHOTO.onnx and labels.json
//
// Needs ONNX Runtime 1.15 or later, and stb_image.h, which reads JPEG, PNG, BMP and GIF:
//   g++ -std=c++17 -O2 predict.cpp -o predict -lonnxruntime

#include <onnxruntime_cxx_api.h>

#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
  int width = 0, height = 0;
  std::vector<std::uint8_t> rgb;
};

std::string content(const std::string& name) {
  std::ifstream stream(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// How the EXIF of a JPEG says that the image is to be turned, from 1 (as it is) to 8.
int orientation(const std::string& file) {
  const std::size_t start = file.substr(0, 1 << 16).find(std::string("Exif\0\0", 6));
  if (file.compare(0, 2, "\xff\xd8") != 0 || start == std::string::npos) return 1;
  const std::string tiff = file.substr(start + 6, 1 << 16);
  const bool little = tiff[0] == 'I';
  const auto number = [&](std::size_t at, int bytes) {
    std::uint32_t value = 0;
    for (int i = 0; i < bytes && at + bytes <= tiff.size(); ++i)
      value = value << 8 | static_cast<std::uint8_t>(tiff[at + (little ? bytes - 1 - i : i)]);
    return value;
  };
  const std::size_t directory = number(4, 4);
  for (std::uint32_t entry = 0; entry < number(directory, 2); ++entry)
    if (const std::size_t at = directory + 2 + 12 * entry; number(at, 2) == 0x0112)
      return std::clamp<int>(number(at + 8, 2), 1, 8);
  return 1;
}

// An image as RGB, upright, on white.
Image decode(const std::string& name) {
  const std::string file = content(name);
  int width, height, channels;
  stbi_uc* const rgba = stbi_load_from_memory(reinterpret_cast<const stbi_uc*>(file.data()),
                                              static_cast<int>(file.size()), &width, &height, &channels, 4);
  if (rgba == nullptr) throw std::runtime_error(stbi_failure_reason());
  const int turn = orientation(file);
  const bool swap = turn >= 5, mirror = turn == 2 || turn == 3 || turn >= 7;
  const bool flip = turn == 3 || turn == 4 || turn == 6 || turn == 7;
  Image image{swap ? height : width, swap ? width : height, {}};
  image.rgb.reserve(std::size_t{3} * width * height);
  for (int y = 0; y < image.height; ++y)
    for (int x = 0; x < image.width; ++x) {
      const int column = swap ? y : x, row = swap ? x : y;
      const std::size_t from = flip ? height - 1 - row : row;
      const stbi_uc* const pixel = rgba + 4 * (from * width + (mirror ? width - 1 - column : column));
      for (int colour = 0; colour < 3; ++colour)
        image.rgb.push_back((pixel[colour] * pixel[3] + 255 * (255 - pixel[3]) + 127) / 255);
    }
  stbi_image_free(rgba);
  return image;
}

// The strings of a JSON list, in UTF-8; escapes of control characters stay as they are.
std::vector<std::string> strings(const std::string& json) {
  std::vector<std::string> list;
  for (std::size_t at = 0; (at = json.find('"', at)) != std::string::npos; ++at) {
    std::string& text = list.emplace_back();
    while (++at < json.size() && json[at] != '"') {
      if (json[at] == '\\' && (json[at + 1] == '"' || json[at + 1] == '\\')) ++at;
      text += json[at];
    }
  }
  return list;
}

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: %s PHOTO...\n", arguments[0]);
    return 2;
  }
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::Session session(env, ORT_TSTR("PHOTO.onnx"), Ort::SessionOptions{});
  const auto labels = strings(content("labels.json"));
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  int status = 0;
  for (int number = 1; number < count; ++number) try {
    Image photo = decode(arguments[number]);
    const std::int64_t shape[] = {1, photo.height, photo.width, 3};
    const auto image = Ort::Value::CreateTensor<std::uint8_t>(memory, photo.rgb.data(), photo.rgb.size(), shape, 4);
    const char *in[] = {"image"}, *out[] = {"probabilities"};
    const auto outputs = session.Run(Ort::RunOptions{}, in, &image, 1, out, 1);
    const float* const probabilities = outputs[0].GetTensorData<float>();
    std::vector<std::size_t> best(labels.size());
    std::iota(best.begin(), best.end(), 0);
    std::stable_sort(best.begin(), best.end(), [&](auto a, auto b) { return probabilities[a] > probabilities[b]; });
    std::printf("%s", arguments[number]);
    for (std::size_t rank = 0; rank < std::min<std::size_t>(3, best.size()); ++rank)
      std::printf("\t%s %.2f%%", labels[best[rank]].c_str(), 100 * probabilities[best[rank]]);
    std::printf("\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", arguments[number], error.what());
    status = 1;
  }
  return status;
}
