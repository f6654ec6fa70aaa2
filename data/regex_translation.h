// The regular expressions of tokenizer.json are Oniguruma's (Ruby syntax, Unicode 16); ours is
// PCRE2. They write the same text and mean different things: `{1,3}+` repeats in one and is
// possessive in the other,
// `\h` is a hex digit or a space, `^` is of lines or of the text, and their Unicode versions
// differ.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// A PCRE2 pattern (UTF mode, PCRE2_MULTILINE, newline LF) that matches what `oniguruma` does.
// Classes are written out as code points. InvalidArgument, with the place, where that cannot be
// promised: back references, options other than (?i), \X, \R, \G, \K, scripts in \p{}, and the
// like.
absl::StatusOr<std::string> TranslateRegex(absl::string_view oniguruma);

}  // namespace shoal
