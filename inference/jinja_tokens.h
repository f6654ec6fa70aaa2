// Jinja's source cut into tags and the text between them, and a tag into tokens.
#pragma once

#include <string>
#include <vector>

namespace shoal::jinja {

// A piece of the source between two tags, or the inside of a tag.
struct Piece {
  enum class Kind { kText, kOutput, kBlock };
  Kind kind;
  std::string text;
  int line;
};

struct Token {
  enum class Kind { kName, kString, kNumber, kSign, kEnd };
  Kind kind;
  std::string text;
};

// Cuts the source at its tags and strips the white space that belongs to them (trim_blocks,
// lstrip_blocks, the signs - and +). Comments leave nothing. Throws Error.
std::vector<Piece> Cut(std::string source);

// Of the inside of a tag; the last is kEnd. Throws Error.
std::vector<Token> Tokens(const std::string& text, int line);

}  // namespace shoal::jinja
