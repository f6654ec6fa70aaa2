#include "core/crc32c.h"

#include <gtest/gtest.h>

#include <string>

#include "core/random.h"

namespace shoal {
namespace {

// RFC 3720, appendix B.4.
TEST(Crc32c, StandardVectors) {
  std::string ascending, descending;
  for (int i = 0; i < 32; ++i) {
    ascending += static_cast<char>(i);
    descending += static_cast<char>(31 - i);
  }
  const std::pair<std::string, uint32_t> vectors[] = {
      {"", 0},
      {"123456789", 0xE3069283},
      {std::string(32, '\0'), 0x8A9136AA},
      {std::string(32, '\xff'), 0x62A8AB43},
      {ascending, 0x46DD794E},
      {descending, 0x113FDB5C},
  };
  for (const auto& [data, crc] : vectors) {
    EXPECT_EQ(Crc32c(data), crc) << data.size();
    EXPECT_EQ(Crc32cPortable(data), crc) << data.size();
  }
}

TEST(Crc32c, TablesEqualInstructionsAndPartsEqualTheWhole) {
  const Philox random(1);
  std::string data;
  for (int i = 0; i < 300; ++i) data += static_cast<char>(random.Bits(i));
  for (size_t begin = 0; begin < 9; ++begin) {
    for (size_t end = begin; end < data.size(); end += 7) {
      const absl::string_view part = absl::string_view(data).substr(begin, end - begin);
      ASSERT_EQ(Crc32c(part), Crc32cPortable(part)) << begin << " to " << end;
      const absl::string_view head = part.substr(0, part.size() / 3),
                              tail = part.substr(part.size() / 3);
      ASSERT_EQ(Crc32c(tail, Crc32c(head)), Crc32c(part)) << begin << " to " << end;
    }
  }
}

}  // namespace
}  // namespace shoal
