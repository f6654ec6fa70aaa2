#include "data/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uniset.h>

#include <algorithm>

#include "core/status.h"

namespace shoal {
namespace {

const icu::Normalizer2& Instance(NormalForm form) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* instance = nullptr;
  switch (form) {
    case NormalForm::kNfc:
      instance = icu::Normalizer2::getNFCInstance(error);
      break;
    case NormalForm::kNfd:
      instance = icu::Normalizer2::getNFDInstance(error);
      break;
    case NormalForm::kNfkc:
      instance = icu::Normalizer2::getNFKCInstance(error);
      break;
    case NormalForm::kNfkd:
      instance = icu::Normalizer2::getNFKDInstance(error);
      break;
  }
  SHOAL_CHECK(U_SUCCESS(error) && instance != nullptr)
      << "ICU has no normalization data: " << u_errorName(error);
  return *instance;
}

// The characters of Unicode 13, whose tables Python's `tokenizers` normalizes by; later ones stay
// as they are.
const icu::UnicodeSet& KnownCharacters() {
  static const icu::UnicodeSet* const set = [] {
    UErrorCode error = U_ZERO_ERROR;
    auto* known = new icu::UnicodeSet(icu::UnicodeString::fromUTF8("[:age=13.0:]"), error);
    SHOAL_CHECK(U_SUCCESS(error)) << "ICU has no age data: " << u_errorName(error);
    known->freeze();
    return known;
  }();
  return *set;
}

// ASCII has one form only; so has, under NFC, all below U+0300 (lead byte 0xCC).
bool Untouched(absl::string_view text, NormalForm form) {
  const unsigned char first_touched = form == NormalForm::kNfc ? 0xCC : 0x80;
  return std::all_of(text.begin(), text.end(), [first_touched](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0xC0 ? (byte < 0x80 || first_touched != 0x80) : byte < first_touched;
  });
}

}  // namespace

absl::string_view Normalizer::Normalize(absl::string_view text, std::string& storage) const {
  absl::string_view current = text;
  for (NormalForm form : forms_) {
    if (Untouched(current, form)) continue;
    std::string out;
    icu::StringByteSink<std::string> sink(&out);
    UErrorCode error = U_ZERO_ERROR;
    const icu::FilteredNormalizer2 normalizer(Instance(form), KnownCharacters());
    normalizer.normalizeUTF8(0,
                             icu::StringPiece(current.data(), static_cast<int32_t>(current.size())),
                             sink, nullptr, error);
    SHOAL_CHECK(U_SUCCESS(error)) << "ICU could not normalize " << current.size()
                                  << " bytes: " << u_errorName(error);
    storage = std::move(out);
    current = storage;
  }
  return current;
}

}  // namespace shoal
