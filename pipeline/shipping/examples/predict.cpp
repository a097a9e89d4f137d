// Classify JPEGs: ./predict PHOTO... with PHOTO.onnx and labels.json beside the program
//
// Needs ONNX Runtime from 1.15 on and libjpeg-turbo:
//   g++ -std=c++17 -O2 predict.cpp -o predict -lonnxruntime -ljpeg

#include <onnxruntime_cxx_api.h>

#include <cstdio>  // jpeglib.h needs it
#include <jpeglib.h>
#include <jerror.h>

#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

struct Image {
  std::int64_t width = 0, height = 0;
  std::vector<std::uint8_t> rgb;
};

struct Failure {
  jpeg_error_mgr manager;
  std::jmp_buf place;
  bool cut_off = false;
};

std::string content(const std::filesystem::path& name) {
  std::ifstream stream(name, std::ios::binary);
  if (!stream) throw std::runtime_error(name.filename().string() + " cannot be opened");
  return {std::istreambuf_iterator<char>(stream), {}};
}

// CMYK, stored inverted as Adobe does it, as RGB.
void from_inks(std::vector<std::uint8_t>& values) {
  for (std::size_t pixel = 0; 4 * pixel < values.size(); ++pixel)
    for (std::size_t channel = 0; channel < 3; ++channel) {
      const int white = values[4 * pixel + 3], product = (255 - values[4 * pixel + channel]) * white + 128;
      values[3 * pixel + channel] = static_cast<std::uint8_t>(white - (((product >> 8) + product) >> 8));
    }
  values.resize(values.size() / 4 * 3);
}

// The pixels as they are stored.
void decode(const std::string& file, Image& image) {
  jpeg_decompress_struct jpeg;
  Failure failure;
  jpeg.err = jpeg_std_error(&failure.manager);
  failure.manager.emit_message = [](j_common_ptr common, int) {
    if (common->err->msg_code == JWRN_JPEG_EOF) reinterpret_cast<Failure*>(common->err)->cut_off = true;
  };
  failure.manager.error_exit = [](j_common_ptr common) {
    std::longjmp(reinterpret_cast<Failure*>(common->err)->place, 1);
  };
  jpeg_create_decompress(&jpeg);
  const bool failed = setjmp(failure.place) != 0;
  if (!failed) {
    jpeg_mem_src(&jpeg, reinterpret_cast<const unsigned char*>(file.data()), file.size());
    jpeg_read_header(&jpeg, TRUE);
    const int channels = jpeg.num_components == 4 ? 4 : 3;
    jpeg.out_color_space = channels == 4 ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&jpeg);
    image.width = jpeg.output_width, image.height = jpeg.output_height;
    image.rgb.resize(channels * image.width * image.height);
    while (jpeg.output_scanline < jpeg.output_height) {
      JSAMPROW row = image.rgb.data() + channels * image.width * jpeg.output_scanline;
      jpeg_read_scanlines(&jpeg, &row, 1);
    }
    if (channels == 4) from_inks(image.rgb);
    jpeg_finish_decompress(&jpeg);
  }
  char message[JMSG_LENGTH_MAX] = "the file is cut off";
  if (failed) failure.manager.format_message(reinterpret_cast<j_common_ptr>(&jpeg), message);
  jpeg_destroy_decompress(&jpeg);
  if (failed || failure.cut_off) throw std::runtime_error(message);
}

// How EXIF says that the image is to be turned, from 1 (as it is) to 8.
int orientation(const std::string& file) {
  const std::size_t start = file.substr(0, 1 << 16).find(std::string("Exif\0\0", 6));
  if (start == std::string::npos) return 1;
  const std::string tiff = file.substr(start + 6, 1 << 16);
  const bool little = tiff[0] == 'I';
  const auto number = [&](std::size_t at, std::size_t bytes) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < bytes && at + bytes <= tiff.size(); ++i)
      value = value << 8 | static_cast<std::uint8_t>(tiff[at + (little ? bytes - 1 - i : i)]);
    return value;
  };
  const std::size_t directory = number(4, 4);
  for (std::uint32_t entry = 0; entry < number(directory, 2); ++entry)
    if (const std::size_t at = directory + 2 + 12 * entry; number(at, 2) == 0x0112)
      return static_cast<int>(number(at + 8, 2));
  return 1;
}

Image upright(const Image& stored, int turn) {
  if (turn < 2 || turn > 8) return stored;
  const bool swap = turn >= 5, mirror = turn == 2 || turn == 3 || turn >= 7;
  const bool flip = turn == 3 || turn == 4 || turn == 6 || turn == 7;
  Image image{swap ? stored.height : stored.width, swap ? stored.width : stored.height, {}};
  image.rgb.reserve(stored.rgb.size());
  for (std::int64_t y = 0; y < image.height; ++y)
    for (std::int64_t x = 0; x < image.width; ++x) {
      const std::int64_t column = swap ? y : x, row = swap ? x : y;
      const auto pixel = stored.rgb.begin() + 3 * ((flip ? stored.height - 1 - row : row) * stored.width +
                                                   (mirror ? stored.width - 1 - column : column));
      image.rgb.insert(image.rgb.end(), pixel, pixel + 3);
    }
  return image;
}

// The strings of a JSON list; escapes of control characters stay as they are.
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

int classify(int count, char** arguments) {
  const auto folder = std::filesystem::path(arguments[0]).parent_path();
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::Session session(env, (folder / "PHOTO.onnx").c_str(), Ort::SessionOptions{});
  const auto labels = strings(content(folder / "labels.json"));
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  int status = 0;
  for (int number = 1; number < count; ++number) {
    try {
      const std::string file = content(arguments[number]);
      Image photo;
      decode(file, photo);
      photo = upright(photo, orientation(file));
      const std::int64_t shape[] = {1, photo.height, photo.width, 3};
      const auto image =
          Ort::Value::CreateTensor<std::uint8_t>(memory, photo.rgb.data(), photo.rgb.size(), shape, 4);
      const char *in[] = {"image"}, *out[] = {"probabilities"};
      const auto outputs = session.Run(Ort::RunOptions{}, in, &image, 1, out, 1);
      const float* const probabilities = outputs[0].GetTensorData<float>();
      std::vector<std::size_t> best(labels.size());
      std::iota(best.begin(), best.end(), 0);
      std::stable_sort(best.begin(), best.end(),
                       [&](auto a, auto b) { return probabilities[a] > probabilities[b]; });
      std::printf("%s", arguments[number]);
      for (std::size_t rank = 0; rank < std::min<std::size_t>(3, best.size()); ++rank)
        std::printf("\t%s %.2f%%", labels[best[rank]].c_str(), 100 * probabilities[best[rank]]);
      std::printf("\n");
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", arguments[number], error.what());
      status = 1;
    }
  }
  return status;
}

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: %s PHOTO...\n", arguments[0]);
    return 2;
  }
  try {
    return classify(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: the files beside %s cannot be used: %s\n", arguments[0], error.what());
    return 1;
  }
}
