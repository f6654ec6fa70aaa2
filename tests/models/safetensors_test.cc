#include "models/safetensors.h"

#include "core/memory_file_system.h"
#include "core/random.h"
#include "tests/models/fixture.h"

namespace shoal {
namespace {

constexpr char kReference[] = "tests/fixtures/models/dtypes.safetensors";

std::string ReferenceBytes() {
  PosixFileSystem files;
  return ValueOrDie(ReadFile(files, kReference, 1 << 20));
}

std::string WithLength(const std::string& header, size_t data_bytes = 0) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return bytes + header + std::string(data_bytes, 'x');
}

absl::Status OpenBytes(const std::string& bytes) {
  MemoryFileSystem files;
  SHOAL_CHECK(WriteFileAtomically(files, "f", bytes).ok());
  return SafetensorsReader::Open(files, "f").status();
}

TEST(SafetensorsTest, WritesWhatTheReferenceWrites) {
  PosixFileSystem posix;
  const auto reader = ValueOrDie(SafetensorsReader::Open(posix, kReference));
  std::map<std::string, Tensor> tensors;
  for (const SafetensorsEntry& entry : reader->tensors())
    tensors[entry.name] = ReadTensor(*reader, entry.name);
  ASSERT_EQ(tensors.size(), 14u);
  EXPECT_EQ(reader->header().metadata.at("format"), "pt");
  MemoryFileSystem memory;
  ASSERT_TRUE(WriteSafetensors(memory, "copy", tensors, {{"format", "pt"}}).ok());
  EXPECT_EQ(ValueOrDie(ReadFile(memory, "copy", 1 << 20)), ReferenceBytes());
}

TEST(SafetensorsTest, ReadsSlicesInAnyDtypeAndCountsBytes) {
  MemoryFileSystem files;
  const Tensor values = at::arange(3'000'000, at::kFloat);  // More than one chunk
  ASSERT_TRUE(WriteSafetensors(files, "f", {{"x", values.view({1000, 3000})}}).ok());
  const auto reader = ValueOrDie(SafetensorsReader::Open(files, "f"));
  for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const int64_t before = reader->bytes_read();
    Tensor out = at::empty({100, 20'000}, at::TensorOptions(dtype));
    ASSERT_TRUE(reader->Read(*reader->Find("x"), 123'456, out).ok());
    EXPECT_TRUE(at::equal(out.view({-1}), values.narrow(0, 123'456, 2'000'000).to(dtype))) << dtype;
    EXPECT_EQ(reader->bytes_read() - before, 8'000'000);
  }
}

TEST(SafetensorsTest, WritesSlicesInAnyOrder) {
  MemoryFileSystem files;
  const SafetensorsLayout layout =
      LayOutSafetensors({{.name = "x", .dtype = "BF16", .shape = {10}}}, {});
  auto file = ValueOrDie(files.OpenForWrite("f", OpenMode::kTruncate));
  ASSERT_TRUE(file->WriteAt(0, layout.head).ok());
  const Tensor values = at::arange(10, at::kFloat);
  ASSERT_TRUE(
      WriteSafetensorsSlice(*file, layout, layout.tensors[0], 6, values.narrow(0, 6, 4)).ok());
  ASSERT_TRUE(
      WriteSafetensorsSlice(*file, layout, layout.tensors[0], 0, values.narrow(0, 0, 6)).ok());
  const auto reader = ValueOrDie(SafetensorsReader::Open(files, "f"));
  EXPECT_TRUE(at::equal(ReadTensor(*reader, "x"), values.to(at::kBFloat16)));
}

struct BadHeader {
  const char* name;
  std::string header;
  size_t data_bytes;
  const char* expected;
};

std::string Tensors(const std::string& fields) { return "{\"a\":{" + fields + "}}"; }

// Attacks known on readers of this format.
const std::vector<BadHeader>& BadHeaders() {
  static const auto& cases = *new std::vector<BadHeader>{
      {"not an object", "[]", 0, "does not start with {"},
      {"leading space", " {}", 0, "does not start with {"},
      {"empty", "", 0, "does not start with {"},
      {"truncated", "{\"a\":", 0, "not valid JSON"},
      {"trailing garbage", "{} {}", 0, "not valid JSON"},
      {"bad utf-8", "{\"\xff\":{}}", 0, "not valid JSON"},
      {"wrapping shape",
       Tensors(R"("dtype":"U8","shape":[4194305,4194305,211106198978564],"data_offsets":[0,4])"), 4,
       "overflows"},
      {"shape beyond 64 bits",
       Tensors(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,1])"), 1,
       "beyond 64 bits"},
      {"negative offset", Tensors(R"("dtype":"U8","shape":[1],"data_offsets":[-1,0])"), 0,
       "negative"},
      {"float shape", Tensors(R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])"), 1,
       "not whole"},
      {"exponent", Tensors(R"("dtype":"U8","shape":[1e0],"data_offsets":[0,1])"), 1, "not whole"},
      {"end before begin", Tensors(R"("dtype":"U8","shape":[0],"data_offsets":[1,0])"), 1,
       "are not in"},
      {"past the end", Tensors(R"("dtype":"U8","shape":[9],"data_offsets":[0,9])"), 8,
       "are not in"},
      {"data left over", Tensors(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])"), 8,
       "end at byte 4 of 8"},
      {"hole at the start", Tensors(R"("dtype":"U8","shape":[4],"data_offsets":[4,8])"), 8,
       "starts at byte 4"},
      {"size mismatch", Tensors(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4, "need 8"},
      {"half bytes", Tensors(R"("dtype":"F4","shape":[1],"data_offsets":[0,1])"), 1, "whole bytes"},
      {"overlap",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, "starts at byte 2"},
      {"same bytes twice",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       4, "starts at byte 0"},
      {"empty tensor inside another",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
       4, "starts at byte 2"},
      {"name twice",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       4, "given twice"},
      {"field twice", Tensors(R"("dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,1])"), 1,
       "given twice"},
      {"unknown field", Tensors(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1)"), 1,
       "not known"},
      {"missing field", Tensors(R"("dtype":"U8","shape":[1])"), 1, "needs dtype"},
      {"unknown dtype", Tensors(R"("dtype":"U7","shape":[1],"data_offsets":[0,1])"), 1,
       "not known"},
      {"dtype a list", Tensors(R"("dtype":["U8"],"shape":[1],"data_offsets":[0,1])"), 1,
       "unexpected ["},
      {"three offsets", Tensors(R"("dtype":"U8","shape":[1],"data_offsets":[0,1,1])"), 1,
       "two numbers"},
      {"nested shape", Tensors(R"("dtype":"U8","shape":[[1]],"data_offsets":[0,1])"), 1,
       "unexpected ["},
      {"tensor null", R"({"a":null})", 0, "null"},
      {"tensor a number", R"({"a":1})", 0, "unexpected number"},
      {"tensor a list", R"({"a":[]})", 0, "unexpected ["},
      {"metadata a number", R"({"__metadata__":{"a":1}})", 0, "unexpected number"},
      {"metadata nested", R"({"__metadata__":{"a":{}}})", 0, "unexpected {"},
      {"metadata twice", R"({"__metadata__":{"a":"1","a":"2"}})", 0, "given twice"},
      {"control character", "{\"a\\u0000b\":{}}", 0, "control character"},
      {"long name", "{\"" + std::string(600, 'n') + "\":{}}", 0, "600 bytes"},
      {"17 dimensions",
       Tensors(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])"),
       1, "more than 16"},
      {"deep", "{\"a\":" + std::string(100'000, '['), 0, "unexpected ["},
      {"deep objects",
       [] {
         std::string text;
         for (int i = 0; i < 100'000; ++i) text += "{\"a\":";
         return text;
       }(),
       0, "not known"},
  };
  return cases;
}

TEST(SafetensorsTest, RefusesBadHeadersInOneLine) {
  for (const BadHeader& bad : BadHeaders()) {
    const absl::Status status = OpenBytes(WithLength(bad.header, bad.data_bytes));
    EXPECT_FALSE(status.ok()) << bad.name;
    EXPECT_NE(std::string(status.message()).find(bad.expected), std::string::npos)
        << bad.name << ": " << status;
    EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos) << bad.name;
    EXPECT_LT(status.message().size(), 1000u) << bad.name;
  }
}

TEST(SafetensorsTest, RefusesBadLengths) {
  EXPECT_FALSE(OpenBytes("").ok());
  EXPECT_FALSE(OpenBytes("1234567").ok());
  EXPECT_FALSE(OpenBytes(std::string(8, '\xff')).ok());
  EXPECT_FALSE(OpenBytes(std::string("\x03\0\0\0\0\0\0\0{}", 10)).ok());
  EXPECT_TRUE(OpenBytes(WithLength("{}")).ok());
}

// Whatever is opened must be readable to its last byte.
void ReadEverything(FileSystem& files) {
  const auto reader = SafetensorsReader::Open(files, "f");
  if (!reader.ok()) return;
  for (const SafetensorsEntry& entry : (*reader)->tensors()) {
    const auto dtype = DtypeOfSafetensors(entry.dtype);
    if (!dtype) continue;
    Tensor out = at::empty({entry.numel()}, at::TensorOptions(*dtype));
    ASSERT_TRUE((*reader)->Read(entry, 0, out).ok());
  }
}

TEST(SafetensorsTest, SurvivesMutations) {
  const std::string original = ReferenceBytes();
  const Philox random(7);
  uint64_t draw = 0;
  const auto below = [&](uint64_t n) { return random.Bits(draw++) % n; };
  const std::string alphabet = "{}[]\",:0123456789-e.\\ nt";
  MemoryFileSystem files;
  for (int round = 0; round < 5000; ++round) {
    std::string bytes = original;
    for (uint64_t edits = 1 + below(3); edits > 0; --edits) {
      const size_t place = below(bytes.size());
      switch (below(5)) {
        case 0:
          bytes[place] = static_cast<char>(below(256));
          break;
        case 1:
          bytes[place] = alphabet[below(alphabet.size())];
          break;
        case 2:
          bytes.erase(place, 1 + below(8));
          break;
        case 3:
          bytes.insert(place, bytes.substr(below(bytes.size()), below(40)));
          break;
        case 4:
          bytes.resize(place + 1);
          break;
      }
    }
    SHOAL_CHECK(WriteFileAtomically(files, "f", bytes).ok());
    ReadEverything(files);
  }
}

}  // namespace
}  // namespace shoal
