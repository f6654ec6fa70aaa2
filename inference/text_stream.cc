#include "inference/text_stream.h"

#include <algorithm>

#include "absl/strings/match.h"

namespace shoal {

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop_strings,
                       std::function<void(absl::string_view)> on_text)
    : decoder_(tokenizer), stop_strings_(std::move(stop_strings)), on_text_(std::move(on_text)) {
  std::erase(stop_strings_, "");
}

bool TextStream::Push(int64_t token) {
  if (!stopped_) Add(decoder_.Push(static_cast<int32_t>(token)));
  return !stopped_;
}

void TextStream::Finish() {
  if (!stopped_) Add(decoder_.Finish());
  if (!stopped_) HandOut(held_.size());
}

void TextStream::Add(const std::string& piece) {
  held_ += piece;
  size_t stop = std::string::npos;
  for (const std::string& text : stop_strings_) stop = std::min(stop, held_.find(text));
  if (stop != std::string::npos) {
    stopped_ = true;
    HandOut(stop);
    return;
  }
  // The longest end of held_ that begins a stop string may yet become one.
  size_t uncertain = 0;
  for (const std::string& text : stop_strings_) {
    for (size_t n = std::min(held_.size(), text.size() - 1); n > uncertain; --n) {
      if (absl::EndsWith(held_, absl::string_view(text).substr(0, n))) uncertain = n;
    }
  }
  HandOut(held_.size() - uncertain);
}

void TextStream::HandOut(size_t bytes) {
  if (bytes > 0 && on_text_) on_text_(absl::string_view(held_).substr(0, bytes));
  text_.append(held_, 0, bytes);
  held_.erase(0, bytes);
}

}  // namespace shoal
