// Unicode normal forms, as tokenizer.json's normalizers ask for them.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace shoal {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

class Normalizer {
 public:
  Normalizer() = default;  // Changes nothing
  explicit Normalizer(std::vector<NormalForm> forms) : forms_(std::move(forms)) {}

  bool empty() const { return forms_.empty(); }
  // `text` (valid UTF-8) or, if a form changes it, the result in `storage`.
  absl::string_view Normalize(absl::string_view text, std::string& storage) const;

 private:
  std::vector<NormalForm> forms_;  // One after another
};

}  // namespace shoal
