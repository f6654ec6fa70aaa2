// Manifests that a hostile hand wrote, checksum and all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/manifest.h"
#include "core/random.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

// One tensor of 10 float32 in two files.
Manifest GoodManifest() {
  Manifest manifest;
  manifest.mutable_state()->set_step(1);
  for (const char* name : {"a.safetensors", "b.safetensors"}) {
    Manifest::File* file = manifest.add_files();
    file->set_name(name);
    file->set_header_bytes(16);
    file->set_bytes(16 + 20);
  }
  Manifest::Tensor* tensor = manifest.add_tensors();
  tensor->set_name("w");
  tensor->set_dtype("F32");
  tensor->add_shape(2);
  tensor->add_shape(5);
  for (int i = 0; i < 2; ++i) {
    Manifest::Chunk* chunk = tensor->add_chunks();
    chunk->set_file(i);
    chunk->set_begin(5 * i);
    chunk->set_end(5 * i + 5);
    chunk->set_offset(16);
  }
  return manifest;
}

TEST(Manifest, RoundTrip) {
  const Manifest manifest = GoodManifest();
  const auto decoded = DecodeManifest(EncodeManifest(manifest));
  ASSERT_EQ(decoded.status(), absl::OkStatus());
  EXPECT_EQ(decoded->SerializeAsString(), manifest.SerializeAsString());
}

TEST(Manifest, RefusesWhatDoesNotHold) {
  const auto refusal = [](std::function<void(Manifest&)> spoil) {
    Manifest manifest = GoodManifest();
    spoil(manifest);
    const auto decoded = DecodeManifest(EncodeManifest(manifest));
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kDataLoss);
    return std::string(decoded.status().message());
  };
  for (const char* name :
       {"", ".hidden", "..", "a/b", "../../etc/passwd", "b.safetensors", "a b", "a\n"}) {
    EXPECT_THAT(refusal([&](Manifest& m) { m.mutable_files(0)->set_name(name); }),
                HasSubstr("file name"))
        << name;
  }
  EXPECT_THAT(refusal([](Manifest& m) { m.mutable_files(0)->set_header_bytes(-1); }),
              HasSubstr("header of -1"));
  EXPECT_THAT(refusal([](Manifest& m) { m.mutable_files(0)->set_header_bytes(int64_t{1} << 62); }),
              HasSubstr("header of"));
  EXPECT_THAT(refusal([](Manifest& m) { m.mutable_files(0)->set_bytes(37); }),
              HasSubstr("its chunks end at 36"));
  EXPECT_THAT(refusal([](Manifest& m) { *m.add_tensors() = m.tensors(0); }),
              HasSubstr("listed twice"));
  const auto tensor = [](Manifest& m) { return m.mutable_tensors(0); };
  EXPECT_THAT(refusal([&](Manifest& m) { tensor(m)->set_dtype("F33"); }),
              HasSubstr("unknown dtype"));
  EXPECT_THAT(refusal([&](Manifest& m) { tensor(m)->set_shape(0, -2); }),
              HasSubstr("impossible shape"));
  // 4194305 * 4194305 * 211106198978564 is 4 modulo 2^64.
  EXPECT_THAT(refusal([&](Manifest& m) {
                tensor(m)->clear_shape();
                for (const int64_t size : {4194305l, 4194305l, 211106198978564l})
                  tensor(m)->add_shape(size);
              }),
              HasSubstr("impossible shape"));
  EXPECT_THAT(refusal([&](Manifest& m) { tensor(m)->set_shape(0, 3); }),
              HasSubstr("ends at element 10 of 15"));
  const auto chunk = [](Manifest& m) { return m.mutable_tensors(0)->mutable_chunks(1); };
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_file(2); }),
              HasSubstr("file number 2 of 2"));
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_file(-1); }),
              HasSubstr("file number -1 of 2"));
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_file(0); }),
              HasSubstr("where 36 should be next"));
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_begin(4); }),
              HasSubstr("elements [4, 10) where 5"));
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_begin(6); }),
              HasSubstr("elements [6, 10) where 5"));
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_end(11); }), HasSubstr("elements [5, 11)"));
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_end(5); }), HasSubstr("elements [5, 5)"));
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_offset(-16); }), HasSubstr("offset -16"));
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_offset(INT64_MAX); }),
              HasSubstr("has offset"));
  EXPECT_THAT(refusal([&](Manifest& m) { chunk(m)->set_offset(0); }),
              HasSubstr("at byte 0 where 16"));
}

// Random edits of the message under a right checksum never get past the checks with a broken
// tiling, nor crash.
TEST(Manifest, SurvivesRandomMessages) {
  const std::string good = GoodManifest().SerializeAsString();
  const Philox random(1, StreamId("manifest"));
  uint64_t drawn = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (uint64_t edits = 1 + random.Bits(drawn++) % 4; edits > 0; --edits) {
      const uint64_t at = random.Bits(drawn++) % bytes.size();
      bytes[at] = static_cast<char>(random.Bits(drawn++));
    }
    Manifest manifest;
    if (!manifest.ParseFromString(bytes) || !CheckManifest(manifest).ok()) continue;
    for (const Manifest::Tensor& tensor : manifest.tensors()) {
      int64_t numel = 0;
      for (const Manifest::Chunk& chunk : tensor.chunks()) numel += chunk.end() - chunk.begin();
      ASSERT_EQ(numel, CheckedNumel(tensor.shape()).value()) << manifest.ShortDebugString();
    }
  }
}

}  // namespace
}  // namespace shoal
