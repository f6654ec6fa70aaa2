// Text from new tokens as they come, up to the first stop string.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace shoal {

// One sequence's. `on_text` (may be empty) is told of pieces of whole characters that are certain:
// what may still turn out to be the beginning of a stop string is held back.
//
//   TextStream stream(tokenizer, {"\n\n"}, [](absl::string_view piece) { std::cout << piece; });
//   request.on_token = [&](int64_t token) { return stream.Push(token); };
//   ... Generate ...
//   stream.Finish();
class TextStream {
 public:
  // `tokenizer` must outlive this.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop_strings,
             std::function<void(absl::string_view)> on_text);

  // False from the token on that completes a stop string. Special tokens add no text.
  bool Push(int64_t token);
  // After the last token: hands out what was held back.
  void Finish();

  // All text so far handed out; neither the stop string nor what follows it is part of it.
  const std::string& text() const { return text_; }

 private:
  void Add(const std::string& piece);
  void HandOut(size_t bytes);

  StreamDecoder decoder_;
  std::vector<std::string> stop_strings_;
  std::function<void(absl::string_view)> on_text_;
  std::string held_;  // Decoded, not handed out
  std::string text_;
  bool stopped_ = false;
};

}  // namespace shoal
